//! Linux's own initiator, in an emulated guest: login, what the kernel makes of the units, XFS, digests, CHAP,
//! multipath, and targets that go and come back under IO.
//!
//! Goal: what an administrator does with a Linux host works, and no byte changes. Method: one boot, and checks by
//! name, each a script in the guest; the target is stopped, killed and started from here.

use std::time::{Duration, Instant};
use tests::guest::{Answer, Guest};
use tests::process::is_long_run;
use tests::target::{Pollux, Setup};

/// No check of ours takes longer under emulation.
const LIMIT: Duration = Duration::from_secs(180);

/// The guest, and which checks have failed, each with what it said.
struct Linux {
    guest: Guest,
    failed: Vec<String>,
    checks: u32,
}

impl Linux {
    /// Runs a script that ends with status 0 if all is well, and says how it went.
    fn check(&mut self, name: &str, script: &str) -> bool {
        let began = Instant::now();
        let answer = self.guest.run(LIMIT, script);
        self.judge(name, began, &answer)
    }

    fn judge(&mut self, name: &str, began: Instant, answer: &Answer) -> bool {
        let passed = answer.status == 0;
        let seconds = began.elapsed().as_secs_f32();
        println!("{} {name} ({seconds:.1} s)", if passed { "PASS" } else { "FAIL" });
        self.checks += 1;
        if !passed {
            let kernel = self.guest.run(LIMIT, "dmesg | tail -n 15");
            let said = answer.text.lines().chain(["-- kernel:"]).chain(kernel.text.lines());
            let said =
                said.fold(format!("    status {}", answer.status), |said, line| said + "\n    " + line);
            println!("{said}");
            // Once more at the end, where whoever sees only that finds it.
            self.failed.push(format!("{name}\n{said}"));
        }
        passed
    }

    /// A check of something that was found out here.
    fn expect(&mut self, name: &str, passed: bool, what: &str) {
        let answer = Answer { status: i32::from(!passed), text: what.to_owned() };
        self.judge(name, Instant::now(), &answer);
    }

    /// A check that all the ones after it stand on.
    fn check_first(&mut self, name: &str, script: &str) {
        assert!(self.check(name, script), "nothing can be tested after a failed {name}");
    }
}

#[test]
#[ignore = "needs qemu, the guest and an optimised pollux: run by tests/run"]
fn linux_guest() {
    let began = Instant::now();
    let mut linux = Linux { guest: Guest::boot(), failed: Vec::new(), checks: 0 };
    println!("guest: booted in {:.1} s", began.elapsed().as_secs_f32());

    let mut pollux = Pollux::start(Setup {
        portals: 2,
        ..Setup::with_luns(&["thin:512M,block=512,physical=4096", "ram:64M,block=4096", "ram:32M,ro"])
    });
    units(&mut linux, &pollux);
    file_system(&mut linux, &pollux);
    commands(&mut linux, &pollux);
    negotiation(&mut linux, &pollux);
    multipath(&mut linux, &pollux);
    restarts(&mut linux, &mut pollux);
    pollux.stop();

    chap(&mut linux);

    assert!(
        linux.failed.is_empty(),
        "{} of {} checks failed: {}",
        linux.failed.len(),
        linux.checks,
        linux.failed.join("\n")
    );
    println!("all {} checks passed in {:.1} s", linux.checks, began.elapsed().as_secs_f32());
}

/// Anything that a kernel says when a disk or its driver misbehaves.
const KERNEL_LOG: &str = r"
! dmesg | grep -iE 'BUG:|WARNING:|I/O error|blk_update_request|detected conn error|XFS.*(corrupt|error)|hung task'
";

/// Discovery, login, and what the units say they are.
fn units(linux: &mut Linux, pollux: &Pollux) {
    let port = pollux.ports()[0];
    linux.check_first(
        "discovery",
        &format!(
            r#"
found=$(iscsiadm -m discovery -t sendtargets -p $host:{port})
echo "$found"
[[ $found == *" $iqn" ]]
iscsiadm -m node -o delete
"#
        ),
    );
    linux.check_first(
        "login, three units",
        &format!(
            r#"
login {port}
iscsiadm -m session -P 2
look() {{ # LUN BYTES BLOCK-BYTES READ-ONLY
    local device have
    device=$(disk "$1" {port})
    have="$(blockdev --getsize64 "$device") $(blockdev --getss "$device") $(blockdev --getro "$device")"
    [[ $have == "$2 $3 $4" ]] || fail "LUN $1: size, block, read-only: $have"
}}
look 0 $((512 << 20)) 512 0
look 1 $((64 << 20)) 4096 0
look 2 $((32 << 20)) 512 1
"#
        ),
    );
    linux.check(
        "identification pages",
        &format!(
            r#"
device=$(disk 0 {port})
sg_turs "$device"
sg_inq "$device"
sg_inq "$device" | grep -q 'Device_type=disk\|Peripheral device type: disk'
for page in 0 0x80 0x83 0x86 0xb0 0xb1 0xb2; do
    sg_vpd -p "$page" "$device"
done
sg_vpd -p di "$device" | grep -qi '0x6'
sg_vpd -p lbpv "$device" | grep -q 'LBPU): 1'
ids=$(for lun in 0 1 2; do sg_vpd -i "$(disk $lun {port})" | grep -i '0x6'; done)
echo "$ids"
(($(sort -u <<<"$ids" | wc -l) == 3)) || fail "ids are not unique"
"#
        ),
    );
    linux.check(
        "capacity, LUNs, modes, logs, operation codes, port groups",
        &format!(
            r#"
device=$(disk 0 {port})
sg_readcap "$device"
sg_readcap --16 "$device"
sg_readcap --16 "$device" | grep -q 'lbpme=1'
sg_readcap --16 "$device" | grep -q 'lbprz=1'
sg_luns "$device"
sg_modes "$device"
sg_modes -6 "$device"
sg_logs "$device"
sg_requests "$device"
sg_opcodes "$device"
sg_opcodes --rctd "$device" >/dev/null
sg_opcodes --tmf "$device"
sg_rtpg "$device"
sg_senddiag --test "$device"
"#
        ),
    );
    linux.check(
        "what the kernel makes of them",
        &format!(
            r#"
device=$(disk 0 {port})
queue=/sys/block/${{device##*/}}/queue
grep . "$queue"/{{logical_block_size,physical_block_size,discard_granularity,discard_max_bytes,write_zeroes_max_bytes}}
(($(<"$queue/physical_block_size") == 4096))
(($(<"$queue/discard_max_bytes") > 0))
grep . /sys/block/${{device##*/}}/device/scsi_disk/*/{{provisioning_mode,thin_provisioning,cache_type}}
"#
        ),
    );
}

/// XFS on LUN 0, and its data after all that can happen to a session.
fn file_system(linux: &mut Linux, pollux: &Pollux) {
    let port = pollux.ports()[0];
    linux.check(
        "XFS: a tree written, read back",
        &format!(
            r#"
device=$(disk 0 {port})
mkfs.xfs -q -f "$device"
mount "$device" /mnt
cp -a /etc /usr/sbin /mnt/
mkdir /mnt/many
for ((i = 0; i < 200; i++)); do head -c $((i * 41)) /dev/urandom >"/mnt/many/$i"; done
head -c 12M /dev/urandom >/mnt/large
head -c 24M /dev/zero >/mnt/zeroes
dd if=/dev/urandom of=/mnt/sparse bs=64k count=1 seek=300 status=none
ln -s large /mnt/link
sync -f /mnt
rm /mnt/zeroes
cd /mnt
find . -type f -print0 | xargs -0 md5sum >/tmp/sums
wc -l </tmp/sums
echo 3 >/proc/sys/vm/drop_caches
md5sum --quiet -c /tmp/sums
"#
        ),
    );
    linux.check("XFS: a file of noise", "head -c 64M /dev/urandom >/mnt/noise\nsync -f /mnt");
    let full = free_bytes(pollux);
    linux.check(
        "XFS: fstrim gives space back, data stay",
        &format!(
            r#"
rm /mnt/noise
sync -f /mnt
fstrim -v /mnt
echo 3 >/proc/sys/vm/drop_caches
cd /mnt
md5sum --quiet -c /tmp/sums
cd /
umount /mnt
xfs_repair -n "$(disk 0 {port})"
"#
        ),
    );
    // A chunk is free once the word that nothing names it is on the medium.
    let began = Instant::now();
    let mut back = 0;
    while back < 60 << 20 && began.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(100));
        back = free_bytes(pollux).saturating_sub(full);
    }
    linux.expect(
        "XFS: the pool has the space that fstrim gave back",
        back >= 60 << 20,
        &format!("{back} bytes more are free than before a file of 64 MiB went"),
    );
    linux.check(
        "XFS: data intact after logout and login",
        &format!(
            r#"
logout
[[ -z $(iscsiadm -m session 2>/dev/null) ]] || fail "a session is left"
login {port}
device=$(disk 0 {port})
mount "$device" /mnt
cd /mnt
md5sum --quiet -c /tmp/sums
cd /
umount /mnt
xfs_repair -n "$device"
"#
        ),
    );
}

/// What the pool of the thin units has free.
fn free_bytes(pollux: &Pollux) -> u64 {
    let pools = pollux.commands().run_well("pool list --json");
    number(&pools, "free_bytes").unwrap_or_else(|| panic!("no free_bytes in {pools}"))
}

/// The number in a field of a JSON document.
fn number(json: &str, field: &str) -> Option<u64> {
    let (_, after) = json.split_once(&format!("\"{field}\":"))?;
    after.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// What the kernel seldom sends, and refusals.
fn commands(linux: &mut Linux, pollux: &Pollux) {
    let port = pollux.ports()[0];
    linux.check(
        "WRITE SAME, UNMAP, VERIFY, WRITE AND VERIFY, FUA, SYNCHRONIZE CACHE",
        &format!(
            r#"
device=$(disk 0 {port})
want=/tmp/want # what the first 4 MiB must hold
head -c 4M /dev/urandom >$want
dd if=$want of="$device" bs=1M oflag=direct status=none
same() {{ dd if="$device" bs=1M count=4 iflag=direct status=none | cmp - $want || fail "data differ after: $*"; }}
put() {{ dd of=$want bs=512 seek="$1" conv=notrunc status=none; }}
zeroes() {{ head -c $(($1 * 512)) /dev/zero; }}
repeated() {{ for ((i = 0; i < $1; i++)); do cat /tmp/block; done; }}
head -c 512 /dev/urandom >/tmp/block
same "write"
sg_write_same --10 --in=/tmp/block --lba=64 --num=31 --xferlen=512 "$device"
repeated 31 | put 64
same "WRITE SAME(10)"
sg_write_same --16 --in=/tmp/block --lba=1000 --num=77 --xferlen=512 "$device"
repeated 77 | put 1000
same "WRITE SAME(16)"
sg_write_same --16 --ndob --lba=1201 --num=8 "$device"
zeroes 8 | put 1201
same "WRITE SAME(16) without data"
sg_write_same --16 --unmap --in=/dev/zero --lba=2048 --num=1024 --xferlen=512 "$device"
zeroes 1024 | put 2048
same "WRITE SAME(16) with UNMAP"
sg_unmap --force --lba=4096 --num=1024 "$device"
zeroes 1024 | put 4096
same "UNMAP"
sg_unmap --force --lba=6003 --num=5 "$device"
zeroes 5 | put 6003
same "UNMAP of a part of a physical block"
blkdiscard -f -z -o $((3 << 20)) -l $((64 << 10)) "$device"
zeroes 128 | put 6144
same "blkdiscard -z"
blkdiscard -f -o $(((3 << 20) + (128 << 10))) -l $((64 << 10)) "$device"
zeroes 128 | put 6400
same "blkdiscard"
sg_verify --lba=0 --count=64 "$device"
sg_verify --16 --lba=0 --count=64 "$device"
head -c 512 $want >/tmp/first
sg_verify --in=/tmp/first --lba=0 --count=1 --ebytchk=1 --ndo=512 "$device"
tell_apart 14 sg_verify --in=/tmp/block --lba=0 --count=1 --ebytchk=1 --ndo=512 "$device"
sg_write_verify --16 --in=/tmp/block --lba=300 --num=1 "$device"
put 300 </tmp/block
same "WRITE AND VERIFY(16)"
sg_dd if=/tmp/block of="$device" bs=512 seek=310 count=1 oflag=fua,sgio cdbsz=16
put 310 </tmp/block
same "WRITE(16) with FUA"
sg_sync "$device"
sg_start --start "$device"
same "all of it"
"#
        ),
    );
    linux.check(
        "refusals: past the end, write protection, an unknown command",
        &format!(
            r#"
device=$(disk 0 {port})
blocks=$(($(blockdev --getsize64 "$device") / 512))
read -ra cdb <<<"88 00 $(printf '%016x' "$blocks" | sed 's/../& /g') 00 00 00 01 00 00"
status=0
out=$(sg_raw -r 512 "$device" "${{cdb[@]}}" 2>&1) || status=$?
echo "$out"
((status != 0))
grep -qi 'logical block address out of range' <<<"$out"
status=0
out=$(sg_raw "$device" ff 00 00 00 00 00 2>&1) || status=$?
echo "$out"
((status != 0))
grep -qi 'invalid command operation code' <<<"$out"
protected=$(generic "$(disk 2 {port})")
status=0
out=$(sg_write_same --16 --ndob --lba=0 --num=8 "$protected" 2>&1) || status=$?
echo "$out"
((status == 7)) # data protect
"#
        ),
    );
    linux.check(
        "LUN and target reset: data stay",
        &format!(
            r#"
device=$(disk 0 {port})
sum=$(head -c 4M "$device" | md5sum)
sg_reset --device "$device"
sg_turs "$device" || true # the unit attention
sg_reset --target "$device"
sg_turs "$device" || true
echo 3 >/proc/sys/vm/drop_caches
[[ $(head -c 4M "$device" | md5sum) == "$sum" ]]
logout
# A reset is an event that the kernel's log tells of; what comes from now on has to be quiet again.
dmesg -C
"#
        ),
    );
}

/// Digests, and who may send what unasked.
fn negotiation(linux: &mut Linux, pollux: &Pollux) {
    let port = pollux.ports()[0];
    for (header, data) in [("CRC32C", "CRC32C"), ("CRC32C", "None"), ("None", "CRC32C")] {
        linux.check(
            &format!("digests: header {header}, data {data}"),
            &format!(
                r#"
fresh
login {port} 'node.conn[0].iscsi.HeaderDigest={header}' 'node.conn[0].iscsi.DataDigest={data}'
[[ $(negotiated HeaderDigest) == {header} && $(negotiated DataDigest) == {data} ]] || fail "$(iscsiadm -m session -P 2)"
verified "$(disk 0 {port})"
logout
"#
            ),
        );
    }
    for (immediate, r2t) in [("Yes", "Yes"), ("Yes", "No"), ("No", "Yes"), ("No", "No")] {
        linux.check(
            &format!("ImmediateData={immediate}, InitialR2T={r2t}"),
            &format!(
                r#"
fresh
login {port} node.session.iscsi.ImmediateData={immediate} node.session.iscsi.InitialR2T={r2t}
[[ $(negotiated ImmediateData) == {immediate} && $(negotiated InitialR2T) == {r2t} ]] || fail "$(iscsiadm -m session -P 2)"
verified "$(disk 0 {port})" --size=12m
logout
"#
            ),
        );
    }
    linux.check(
        "small bursts and segments, several R2Ts",
        &format!(
            r#"
fresh
login {port} node.session.iscsi.FirstBurstLength=4096 node.session.iscsi.MaxBurstLength=16384 \
    'node.conn[0].iscsi.MaxRecvDataSegmentLength=4096' 'node.conn[0].iscsi.MaxXmitDataSegmentLength=8192' \
    node.session.iscsi.MaxOutstandingR2T=4
iscsiadm -m session -P 2 | grep -E 'Length|R2T'
verified "$(disk 0 {port})" --size=12m
verified "$(disk 1 {port})" --size=12m
logout
"#
        ),
    );
}

/// Two sessions, one disk.
fn multipath(linux: &mut Linux, pollux: &Pollux) {
    let (one, other) = (pollux.ports()[0], pollux.ports()[1]);
    linux.check(
        "multipath: two sessions are one disk",
        &format!(
            r#"
modprobe -a dm_multipath dm_round_robin dm_service_time
fresh
login {one}
login {other}
device=$(disk 0 {one})
second=$(disk 0 {other})
multipathd
for ((tries = 0; tries < 300; tries++)); do
    multipathd show paths raw format '%d %t %o' >/tmp/paths 2>/dev/null || true
    (($(grep -c 'active.*running' /tmp/paths) < 6)) || break
    sleep 0.1
done
cat /tmp/paths
multipath -ll
for path in "$device" "$second"; do
    grep -q "^${{path##*/}} *active" /tmp/paths || fail "$path is no active path"
done
map=/dev/mapper/$(multipathd show maps raw format '%n %s %w' | head -n 1 | cut -d ' ' -f 1)
[[ -b $map ]]
name=$(lsblk -nro NAME "$device" | sed -n 2p)
echo "/dev/mapper/$name" >/tmp/map
verified "$(</tmp/map)" --size=16m
"#
        ),
    );
    linux.check("the kernel has nothing to complain about", KERNEL_LOG);
    linux.check(
        "multipath: a path goes and comes back under IO",
        &format!(
            r#"
went=$(disk 0 {other})
went=${{went##*/}}
verified "$(</tmp/map)" --size=24m --rate=3m >/tmp/fio.out 2>&1 &
sleep 2
iscsiadm -m node -T "$iqn" -p "$host:{other}" --logout
sleep 2
iscsiadm -m node -T "$iqn" -p "$host:{other}" --login
wait $! || {{ cat /tmp/fio.out; exit 1; }}
second=$(disk 0 {other})
for ((tries = 0; tries < 200; tries++)); do
    multipathd show paths raw format '%d %t' | grep -q "^${{second##*/}} *active" && break
    sleep 0.1
done
multipathd show paths raw format '%d %t' | grep "^${{second##*/}} *active"
multipathd show paths raw format '%d %t'
multipathd shutdown
for ((tries = 0; tries < 100; tries++)); do multipath -F && break; sleep 0.1; done
logout
# What was on its way to the path that went may be an error of that path, but of nothing else.
said=$(dmesg | grep -iE 'BUG:|WARNING:|detected conn error|XFS.*(corrupt|error)|hung task|Buffer I/O error') || true
[[ -z $said ]] || fail "$said"
said=$(dmesg | grep -i 'I/O error' | grep -vE "dev (${{second##*/}}|$went),") || true
[[ -z $said ]] || fail "$said"
"#
        ),
    );
}

/// The target goes and comes back while the initiator writes.
fn restarts(linux: &mut Linux, pollux: &mut Pollux) {
    let port = pollux.ports()[0];
    linux.check_first("login before the restarts", &format!("fresh\nlogin {port}\ndisk 0 {port}"));
    let rounds = if is_long_run() { 10 } else { 1 };
    for round in 0..rounds {
        for crash in [false, true] {
            let how = if crash { "killed" } else { "told to go" };
            let name = format!("target {how} and started again under IO, round {}", round + 1);
            let began = Instant::now();
            let started = linux.guest.run(
                LIMIT,
                &format!(
                    r#"
device=$(disk 0 {port})
rm -f /tmp/fio.status
(set +e; (verified "$device" --size=24m --rate=4m) >/tmp/fio.out 2>&1; echo $? >/tmp/fio.status) &
sleep 1.5
[[ ! -e /tmp/fio.status ]] || cat /tmp/fio.out
"#
                ),
            );
            if started.status == 0 {
                if crash {
                    pollux.kill();
                    // Long enough for the initiator to be refused a few times.
                    std::thread::sleep(Duration::from_secs(2));
                } else {
                    pollux.stop();
                }
                pollux.start_again();
            }
            let answer = linux.guest.run(
                LIMIT,
                r#"
[[ ! -e /tmp/fio.status ]] || fail "fio ended before the target was back: $(</tmp/fio.out)"
until [[ -e /tmp/fio.status ]]; do sleep 0.1; done
cat /tmp/fio.out
(($(</tmp/fio.status) == 0))
"#,
            );
            linux.judge(&name, began, &answer);
        }
    }
    linux.check("logout after the restarts", "logout");
}

/// Who may log in to the target of [`chap`], and with what.
const ACCESS: &str = r#"
[target]
iqn = "iqn.2026-11.io.pollux:demo"

[[host]]
iqn = "iqn.2026-11.io.pollux:guest"
chap = { user = "guest", secret = "the guest's own secret" }
mutual = { user = "pollux", secret = "the target's own secret" }
"#;

/// Names, secrets, and being turned away.
fn chap(linux: &mut Linux) {
    let mut pollux =
        Pollux::start(Setup { config: Some(ACCESS.to_owned()), ..Setup::with_luns(&["ram:64M"]) });
    let port = pollux.ports()[0];
    let prelude = format!(
        r#"
auth() {{ # ALGORITHM SECRET [TARGET-SECRET]: the node record
    record {port} node.session.auth.authmethod=CHAP node.session.auth.chap_algs="$1" \
        node.session.auth.username=guest node.session.auth.password="$2"
    [[ $# == 2 ]] || iscsiadm -m node -T "$iqn" -p "$host:{port}" -o update -n node.session.auth.username_in -v pollux \
        -n node.session.auth.password_in -v "$3"
}}
refused() {{
    local status=0
    iscsiadm -m node -T "$iqn" -p "$host:{port}" "$@" --login || status=$?
    ((status != 0)) || fail "the login was not refused"
    [[ -z $(iscsiadm -m session 2>/dev/null) ]] || fail "there is a session all the same"
    iscsiadm -m node -o delete
}}
accepted() {{
    iscsiadm -m node -T "$iqn" -p "$host:{port}" --login
    head -c 1M "$(disk 0 {port})" | cmp - <(head -c 1M /dev/zero)
    logout
}}
mine="the guest's own secret" theirs="the target's own secret"
"#
    );
    for algorithm in ["MD5", "SHA1", "SHA256", "SHA3-256"] {
        linux.check(
            &format!("CHAP with {algorithm}"),
            &format!("{prelude}auth {algorithm} \"$mine\"\naccepted"),
        );
    }
    linux.check("mutual CHAP", &format!("{prelude}auth SHA256 \"$mine\" \"$theirs\"\naccepted"));
    linux.check("CHAP: a wrong secret is refused", &format!("{prelude}auth MD5 'not that secret'\nrefused"));
    linux.check(
        "mutual CHAP: Linux refuses a target that does not know its secret",
        &format!("{prelude}auth MD5 \"$mine\" 'not their secret'\nrefused"),
    );
    linux.check("CHAP: a login without it is refused", &format!("{prelude}record {port}\nrefused"));
    linux.check(
        "a host that is not on the list is refused",
        &format!(
            r#"{prelude}
iscsiadm -m iface -I stranger -o new
iscsiadm -m iface -I stranger -o update -n iface.initiatorname -v iqn.2026-11.io.pollux:stranger
iscsiadm -m node -o new -T "$iqn" -p "$host:{port}" -I stranger >/dev/null
for setting in authmethod=CHAP chap_algs=MD5 username=guest "password=$mine"; do
    iscsiadm -m node -T "$iqn" -p "$host:{port}" -I stranger -o update \
        -n "node.session.auth.${{setting%%=*}}" -v "${{setting#*=}}"
done
refused -I stranger
"#
        ),
    );
    pollux.stop();
}
