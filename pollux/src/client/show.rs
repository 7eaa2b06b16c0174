//! What commands print: a table for people, sizes rounded; or one JSON document, sizes exact.

use super::Stop;
use crate::check::CheckReport;
use crate::control::api::{
    Deleted, Extent, Lun, Luns, Pool, Pools, Snapshot, Snapshots, Source, Unmapped, Usage, Volume, Volumes,
};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write;

/// Something to print.
pub(super) trait Show: Serialize {
    /// For people, with the last newline.
    fn text(&self) -> String;
}

pub(super) fn print(out: &mut dyn Write, json: bool, shown: &impl Show) -> Result<(), Stop> {
    if json {
        // A path that isn't UTF-8 is the only thing that can't be written, and an answer has none.
        let text = serde_json::to_string_pretty(shown).map_err(std::io::Error::from)?;
        writeln!(out, "{text}")?;
    } else {
        out.write_all(shown.text().as_bytes())?;
    }
    Ok(())
}

/// A size in three digits, rounded: `1T`, `1.46G`, `512`.
pub(super) fn human(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
    let Some((unit, shift)) = UNITS.into_iter().find(|&(_, shift)| bytes >> shift > 0) else {
        return bytes.to_string();
    };
    let value = bytes as f64 / (1u64 << shift) as f64;
    let decimals = match value {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// Seconds since 1970 as a date and time in UTC.
pub(super) fn time(seconds: u64) -> String {
    // Days to a date in the calendar that has 400 years of 146,097 days, which begin on a 1st of March.
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// A table: columns whose heads end in `>` stand to the right.
fn table(heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    // Lines are never broken, whatever the terminal: they are for grep, too.
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heads.iter().map(|head| head.trim_end_matches('>')));
    table.add_rows(rows);
    for (column, head) in table.column_iter_mut().zip(heads) {
        column.set_padding((0, 2));
        if head.ends_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn pools(pools: &[Pool]) -> String {
    let rows = pools.iter().map(|pool| {
        vec![
            pool.name.clone(),
            human(pool.data_bytes),
            human(pool.data_bytes.saturating_sub(pool.free_chunk_bytes)),
            human(pool.free_bytes),
            human(pool.reserved_bytes),
            human(pool.pending_bytes),
            format!("{} of {}", human(pool.metadata_used_bytes), human(pool.metadata_bytes)),
            pool.volumes.to_string(),
            pool.snapshots.to_string(),
            pool.members.iter().map(|member| member.path.as_str()).collect::<Vec<_>>().join(","),
        ]
    });
    let heads = [
        "POOL",
        "SPACE>",
        "USED>",
        "FREE>",
        "RESERVED>",
        "PENDING>",
        "METADATA>",
        "VOLUMES>",
        "SNAPSHOTS>",
        "DEVICES",
    ];
    let mut text = table(&heads, rows);
    for pool in pools {
        if pool.free_bytes < pool.free_chunk_bytes {
            let (chunks, below) =
                (human(pool.free_chunk_bytes), human(pool.file_system_free_bytes.unwrap_or(0)));
            let _ = writeln!(
                text,
                "promised: {}: {chunks} are free in it, but the file system below has {below}; give it space before \
                 that is used up",
                pool.name
            );
        }
        for damage in &pool.damaged {
            let _ = writeln!(text, "damaged: {}/{}: {}", pool.name, damage.volume, damage.what);
        }
    }
    text
}

impl Show for Pools {
    fn text(&self) -> String {
        pools(&self.pools)
    }
}

impl Show for Pool {
    fn text(&self) -> String {
        pools(std::slice::from_ref(self))
    }
}

/// A figure of a walk; one that writes may have overtaken says so.
fn about(usage: Option<Usage>, bytes: impl Fn(&Usage) -> Option<u64>) -> String {
    let told = usage.and_then(|usage| {
        let bytes = human(bytes(&usage)?);
        Some(if usage.exact { bytes } else { format!("~{bytes}") })
    });
    or_dash(told)
}

fn volumes(volumes: &[Volume]) -> String {
    let rows = volumes.iter().map(|volume| {
        vec![
            volume.name.clone(),
            human(volume.size_bytes),
            volume.provisioning.word().to_owned(),
            human(volume.mapped_bytes),
            about(volume.usage, |usage| Some(usage.unique_bytes)),
            about(volume.usage, |usage| usage.shared_bytes),
            human(volume.reserved_bytes),
            volume.snapshots.to_string(),
            format!("{}/{}", volume.block_bytes, volume.physical_block_bytes),
            if volume.zero_detect { "on" } else { "off" }.to_owned(),
            if volume.write_cache { "back" } else { "through" }.to_owned(),
            if volume.attached { "yes" } else { "no" }.to_owned(),
            or_dash(volume.origin.clone()),
        ]
    });
    let heads = [
        "VOLUME",
        "SIZE>",
        "KIND",
        "MAPPED>",
        "UNIQUE>",
        "SHARED>",
        "RESERVED>",
        "SNAPSHOTS>",
        "BLOCKS",
        "ZERO",
        "WRITE",
        "LUN",
        "ORIGIN",
    ];
    let mut text = table(&heads, rows);
    for volume in volumes {
        if let Some(damage) = &volume.damage {
            let _ = writeln!(text, "damaged: {}: {damage}", volume.name);
        }
    }
    text
}

impl Show for Volumes {
    fn text(&self) -> String {
        volumes(&self.volumes)
    }
}

impl Show for Volume {
    fn text(&self) -> String {
        volumes(std::slice::from_ref(self))
    }
}

fn snapshots(snapshots: &[Snapshot]) -> String {
    let rows = snapshots.iter().map(|snapshot| {
        vec![
            format!("{}@{}", snapshot.volume, snapshot.name),
            human(snapshot.size_bytes),
            human(snapshot.mapped_bytes),
            about(snapshot.usage, |usage| Some(usage.unique_bytes)),
            snapshot.clones.to_string(),
            time(snapshot.created_seconds),
        ]
    });
    table(&["SNAPSHOT", "SIZE>", "MAPPED>", "UNIQUE>", "CLONES>", "MADE"], rows)
}

impl Show for Snapshots {
    fn text(&self) -> String {
        snapshots(&self.snapshots)
    }
}

impl Show for Snapshot {
    fn text(&self) -> String {
        snapshots(std::slice::from_ref(self))
    }
}

fn luns(luns: &[Lun]) -> String {
    let rows = luns.iter().map(|lun| {
        let blocks = lun.block_bytes.zip(lun.physical_block_bytes);
        let behind = match (&lun.pool, &lun.volume, &lun.spec) {
            (Some(pool), Some(volume), _) => format!("{pool}/{volume}"),
            (_, _, spec) => or_dash(spec.clone()),
        };
        let flags = [(lun.read_only, "ro"), (lun.removable, "removable"), (!lun.served, "not served")];
        let flags: Vec<&str> = flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
        vec![
            lun.lun.to_string(),
            or_dash(lun.size_bytes.map(human)),
            or_dash(blocks.map(|(block, physical)| format!("{block}/{physical}"))),
            behind,
            match lun.source {
                Source::Configuration => "configuration",
                Source::Catalog => "catalog",
            }
            .to_owned(),
            or_dash(lun.sessions.map(|sessions| sessions.to_string())),
            or_dash(lun.copies.map(|copies| human(copies.shared_bytes))),
            or_dash(lun.copies.map(|copies| human(copies.copied_bytes()))),
            or_dash(lun.name.clone()),
            lun.target.clone(),
            if flags.is_empty() { "-".to_owned() } else { flags.join(",") },
        ]
    });
    // What third-party copies brought: by pointers, and as bytes.
    let heads = [
        "LUN>",
        "SIZE>",
        "BLOCKS",
        "SHOWS",
        "FROM",
        "SESSIONS>",
        "CLONED>",
        "COPIED>",
        "NAME",
        "TARGET",
        "FLAGS",
    ];
    table(&heads, rows)
}

impl Show for Luns {
    fn text(&self) -> String {
        luns(&self.luns)
    }
}

impl Show for Lun {
    fn text(&self) -> String {
        luns(std::slice::from_ref(self))
    }
}

impl Show for Deleted {
    fn text(&self) -> String {
        format!("deleted {}\n", self.deleted)
    }
}

impl Show for Unmapped {
    fn text(&self) -> String {
        let Lun { lun, target, volume, .. } = &self.unmapped;
        let was = volume.as_ref().map(|volume| format!(", volume {volume}")).unwrap_or_default();
        format!("unmapped LUN {lun} of {target}{was}\n")
    }
}

impl Show for CheckReport {
    fn text(&self) -> String {
        let mut text = format!("pool {}, {}\n", self.pool, self.uuid);
        for member in &self.members {
            let _ = writeln!(text, "  {} {}", member.path, human(member.size_bytes));
        }
        let totals = &self.totals;
        let _ = writeln!(
            text,
            "{} volumes, {} snapshots, {} metadata blocks, {} chunks, {} of data",
            totals.volumes,
            totals.snapshots,
            totals.metadata_blocks,
            totals.chunks,
            human(totals.data_bytes)
        );
        if !self.problems.is_empty() {
            let rows = self.problems.iter().map(|problem| {
                let repaired = if problem.repaired { "yes" } else { "no" };
                vec![problem.kind.clone(), problem.place.clone(), repaired.to_owned(), problem.what.clone()]
            });
            text += &table(&["PROBLEM", "WHERE", "REPAIRED", "MEANS"], rows);
        }
        let untold = totals.problems.saturating_sub(self.problems.len() as u64);
        if untold > 0 {
            let _ = writeln!(text, "and {untold} more");
        }
        let _ = writeln!(text, "{} problems, {} repaired", totals.problems, totals.repaired);
        text
    }
}

/// A diff, printed part by part.
pub(super) struct DiffPrinter<'a> {
    out: &'a mut dyn Write,
    json: bool,
    extents: u64,
    changed_bytes: u64,
}

impl<'a> DiffPrinter<'a> {
    /// Nothing printed yet.
    pub(super) fn new(out: &'a mut dyn Write, json: bool) -> DiffPrinter<'a> {
        DiffPrinter { out, json, extents: 0, changed_bytes: 0 }
    }

    /// The next extents.
    pub(super) fn part(&mut self, extents: &[Extent]) -> Result<(), Stop> {
        for &Extent { offset_bytes, length_bytes } in extents {
            if self.json {
                let before = if self.extents == 0 { "{\n  \"extents\": [\n" } else { ",\n" };
                let extent =
                    format!("{{\"offset_bytes\": {offset_bytes}, \"length_bytes\": {length_bytes}}}");
                write!(self.out, "{before}    {extent}")?;
            } else {
                if self.extents == 0 {
                    writeln!(self.out, "{:>20}  {:>20}", "OFFSET", "LENGTH")?;
                }
                writeln!(self.out, "{offset_bytes:>20}  {length_bytes:>20}")?;
            }
            self.extents += 1;
            self.changed_bytes += length_bytes;
        }
        Ok(())
    }

    /// After the last.
    pub(super) fn end(self) -> Result<(), Stop> {
        let DiffPrinter { out, json, extents, changed_bytes } = self;
        if !json {
            writeln!(out, "{extents} extents, {} in all", human(changed_bytes))?;
            return Ok(());
        }
        let list = if extents == 0 { "{\n  \"extents\": [" } else { "\n  " };
        writeln!(out, "{list}],\n  \"changed_bytes\": {changed_bytes}\n}}")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: sizes read as people say them. Method: a table, edges included.
    #[test]
    fn sizes_are_rounded() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1K"),
            (1536 << 20, "1.5G"),
            (1 << 40, "1T"),
            ((1 << 40) - 1, "1024G"),
            (65 << 20, "65M"),
            (1_234_567_890, "1.15G"),
            (10_485_760 + 100_000, "10.1M"),
            (64 << 40, "64T"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    /// Goal: dates are right, leap years too. Method: `date -u -d @N`.
    #[test]
    fn times_are_utc() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_399, "2000-02-28 23:59:59Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (1_709_251_199, "2024-02-29 23:59:59Z"),
            (1_795_592_571, "2026-11-25 07:42:51Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(time(seconds), text);
        }
    }

    fn printed(json: bool, parts: &[&[(u64, u64)]]) -> String {
        let mut out = Vec::new();
        let mut printer = DiffPrinter::new(&mut out, json);
        for part in parts {
            let extent = |&(offset_bytes, length_bytes): &(u64, u64)| Extent { offset_bytes, length_bytes };
            printer.part(&part.iter().map(extent).collect::<Vec<_>>()).unwrap();
        }
        printer.end().unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Goal: a diff is one JSON document however many parts it came in. Method: none, one, two; parsed.
    #[test]
    fn a_diff_is_one_document() {
        for (parts, extents, changed) in [
            (&[&[][..]][..], 0, 0),
            (&[&[(0, 4096)]], 1, 4096),
            (&[&[(0, 4096), (8192, 4096)], &[], &[(1 << 40, 65536)]], 3, 73728),
        ] {
            let document: serde_json::Value = serde_json::from_str(&printed(true, parts)).unwrap();
            assert_eq!(document["extents"].as_array().unwrap().len(), extents);
            assert_eq!(document["changed_bytes"], changed);
            assert!(
                printed(false, parts).ends_with(&format!("{extents} extents, {} in all\n", human(changed)))
            );
        }
    }

    /// Goal: a check's table says what, where and whether it was put right, and counts what it doesn't list.
    #[test]
    fn a_check_is_told() {
        let mut report = CheckReport { pool: "p".to_owned(), ..CheckReport::default() };
        assert!(report.text().ends_with("0 problems, 0 repaired\n"));
        for number in 0..crate::check::PROBLEMS_MAX + 5 {
            report.found(crate::check::Problem {
                kind: "node_checksum".to_owned(),
                place: format!("/dev/sdb byte {number}"),
                what: "the block is not what was written there".to_owned(),
                repaired: number == 0,
            });
        }
        let text = report.text();
        for part in [
            "PROBLEM",
            "node_checksum  /dev/sdb byte 0 ",
            "  yes  ",
            "and 5 more\n1005 problems, 1 repaired\n",
        ] {
            assert!(text.contains(part), "{part}");
        }
        assert_eq!(report.left(), 1004);
        let back: CheckReport = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(back, report);
    }
}
