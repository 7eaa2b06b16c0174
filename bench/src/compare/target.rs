//! What `--target` of `bench compare` names: `[NAME=]TARGET`, parsed once, when the command line is.
//!
//! ```text
//! raw                            the ceiling
//! tgt                            Debian's tgtd
//! pollux[@POLL][:SPEC]           pollux, by the program of --pollux
//! NAME=/PATH[@POLL][:SPEC]       another pollux program; a PATH has no colon, the first one ends it
//! NAME=iscsi://HOST:PORT/IQN/LUN one that runs already
//! ```
//!
//! POLL is `adaptive` or `busy`, SPEC a LUN as pollux's own `--lun` takes it, behind which `,data=ram:SIZE` may stand as the
//! last of its options: pollux's own `--data`. What is left out is what `--pollux-poll` and `--pollux-lun` say. Every target can be given a NAME, which is what tables call it.

use crate::args::{CompareArgs, Url};
use crate::failure::Failure;
use crate::process::PolluxOptions;
use std::path::PathBuf;

const FORMS: &str =
    "raw, tgt, pollux[@POLL][:SPEC], NAME=/PATH/OF/POLLUX[@POLL][:SPEC] or NAME=iscsi://HOST:PORT/IQN/LUN";

/// What an idle reactor of pollux does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Poll {
    /// Looks for work for a while, then sleeps
    Adaptive,
    /// Never sleeps
    Busy,
}

impl Poll {
    /// As pollux's own `--poll` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Poll::Adaptive => "adaptive",
            Poll::Busy => "busy",
        }
    }

    fn of_name(name: &str) -> Option<Poll> {
        [Poll::Adaptive, Poll::Busy].into_iter().find(|poll| poll.name() == name)
    }
}

/// One column of the comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What tables call it.
    pub name: String,
    /// What it is.
    pub what: What,
}

/// What a target is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Raw sockets.
    Raw,
    /// tgtd, which is started.
    Tgt,
    /// A pollux, which is started.
    Pollux(Pollux),
    /// One that somebody else runs.
    Running(Url),
}

/// How a pollux is to be started; what is absent is told by other options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pollux {
    /// The program.
    pub path: Option<PathBuf>,
    /// What its idle reactor does.
    pub poll: Option<Poll>,
    /// Its LUN's SPEC.
    pub lun: Option<String>,
    /// Its `--data`.
    pub data: Option<String>,
}

impl Target {
    /// Parses `[NAME=]TARGET`.
    ///
    /// # Errors
    /// It is none of the forms; which part of it, and what there is instead.
    pub fn parse(text: &str) -> Result<Target, Failure> {
        // A SPEC and a path may have an equals sign in them, a NAME has neither colon nor slash before its own.
        let named = text.split_once('=').filter(|(name, _)| !name.contains([':', '/']));
        let (name, told) = match named {
            Some(("", _)) => return Err(Failure::new(format!("{text:?} has no name before its `=`"))),
            Some((name, told)) => (Some(name), told),
            None => (None, text),
        };
        let unnamed = |told: &str| Failure::new(format!("{told:?} needs a name: write NAME={told}"));
        let (short, what) = match told {
            "raw" => (Some("raw".to_owned()), What::Raw),
            "tgt" => (Some("tgt".to_owned()), What::Tgt),
            url if url.starts_with("iscsi://") => (None, What::Running(Url::parse(url)?)),
            told => {
                let pollux = Pollux::parse(told)?;
                (pollux.path.is_none().then(|| pollux.short_name()), What::Pollux(pollux))
            }
        };
        let name = name.map(str::to_owned).or(short).ok_or_else(|| unnamed(told))?;
        Ok(Target { name, what })
    }
}

impl Pollux {
    /// How it is started, with what the other options say.
    pub fn options(&self, args: &CompareArgs) -> PolluxOptions {
        PolluxOptions {
            dir: None,
            path: self.path.clone().or_else(|| args.pollux.clone()),
            cpu: args.target_cpu,
            poll: self.poll.unwrap_or(args.pollux_poll).name().to_owned(),
            lun: self.lun.clone().unwrap_or_else(|| args.pollux_lun.clone()),
            data: self.data.clone(),
        }
    }

    /// Parses `pollux[@POLL][:SPEC]` and `/PATH[@POLL][:SPEC]`.
    fn parse(told: &str) -> Result<Pollux, Failure> {
        let (front, lun) = match told.split_once(':') {
            Some((_, "")) => {
                return Err(Failure::new(format!(
                    "{told:?} has no SPEC behind its colon: write one such as null:1G, or no colon"
                )));
            }
            Some((front, lun)) => (front, Some(lun.to_owned())),
            None => (told, None),
        };
        let (lun, data) = match lun.as_deref().and_then(|lun| lun.rsplit_once(",data=")) {
            Some((lun, data)) if data.starts_with("ram:") => (Some(lun.to_owned()), Some(data.to_owned())),
            Some((_, data)) => {
                return Err(Failure::new(format!("{told:?}: data={data} is none: write data=ram:SIZE")));
            }
            None => (lun, None),
        };
        let (program, poll) = match front.rsplit_once('@') {
            Some((program, poll)) => (program, Some(poll)),
            None => (front, None),
        };
        if program == "pollux" {
            let poll = poll
                .map(|poll| {
                    let unknown = || Failure::new(format!("{told:?}: {poll:?} is neither adaptive nor busy"));
                    Poll::of_name(poll).ok_or_else(unknown)
                })
                .transpose()?;
            return Ok(Pollux { path: None, poll, lun, data });
        }
        if !["/", "./", "../"].iter().any(|start| front.starts_with(start)) {
            return Err(Failure::new(format!("{told:?} is none of {FORMS}")));
        }
        // Builds are kept under names like pollux@v2, so what is no way to poll belongs to the path.
        let (path, poll) = match poll.and_then(Poll::of_name) {
            Some(poll) => (program, Some(poll)),
            None => (front, None),
        };
        Ok(Pollux { path: Some(path.into()), poll, lun, data })
    }

    /// Whether its LUN is a thin one of a pool in memory.
    pub fn is_thin(&self, args: &CompareArgs) -> bool {
        self.data.is_some() && self.options(args).lun.starts_with("thin:")
    }

    /// `pollux`, with what sets it apart.
    fn short_name(&self) -> String {
        let poll = self.poll.map(Poll::name);
        ["pollux"].into_iter().chain(poll).chain(self.lun.as_deref()).collect::<Vec<_>>().join(" ")
    }
}

/// Refuses targets that tables couldn't tell apart.
///
/// # Errors
/// Two have one name.
pub fn check_names(targets: &[Target]) -> Result<(), Failure> {
    for (index, target) in targets.iter().enumerate() {
        if targets[..index].iter().any(|other| other.name == target.name) {
            return Err(Failure::new(format!(
                "--target: two are called {:?}: give one a name of its own, as in other=pollux",
                target.name
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every form of a pollux becomes what it says, under a name that sets it apart. Method: by hand, with signs of
    /// the grammar inside of paths and SPECs.
    #[test]
    fn forms_of_pollux() {
        let none = (None, None, None);
        let busy = Some(Poll::Busy);
        for (text, name, (path, poll, lun)) in [
            ("pollux", "pollux", none),
            ("pollux:null:1G", "pollux null:1G", (None, None, Some("null:1G"))),
            (
                "pollux:ram:256M,block=4096",
                "pollux ram:256M,block=4096",
                (None, None, Some("ram:256M,block=4096")),
            ),
            ("pollux@adaptive", "pollux adaptive", (None, Some(Poll::Adaptive), None)),
            ("pollux@busy:null:1G", "pollux busy null:1G", (None, busy, Some("null:1G"))),
            ("zero=pollux:null:1G", "zero", (None, None, Some("null:1G"))),
            ("other=pollux", "other", none),
            ("old=/a/pollux", "old", (Some("/a/pollux"), None, None)),
            ("old=../a/pollux@busy:null:1G", "old", (Some("../a/pollux"), busy, Some("null:1G"))),
            ("v2=/a/pollux@v2", "v2", (Some("/a/pollux@v2"), None, None)),
            (
                "v2=/a=b/pollux@v2@busy:file:/d=e,ro",
                "v2",
                (Some("/a=b/pollux@v2"), busy, Some("file:/d=e,ro")),
            ),
        ] {
            let (path, lun) = (path.map(PathBuf::from), lun.map(str::to_owned));
            let what = What::Pollux(Pollux { path, poll, lun, data: None });
            assert_eq!(Target::parse(text), Ok(Target { name: name.into(), what }), "{text}");
        }
        let told = Target::parse("pollux@busy:thin:16G,zero=off,data=ram:20G").unwrap();
        let (lun, data) = (Some("thin:16G,zero=off".to_owned()), Some("ram:20G".to_owned()));
        let what = What::Pollux(Pollux { path: None, poll: busy, lun, data });
        assert_eq!(told, Target { name: "pollux busy thin:16G,zero=off".into(), what });
    }

    /// Goal: what a target doesn't say comes from the other options, through the whole command line. Method: targets that
    /// say all, some and nothing of it.
    #[test]
    fn options_fill_in() {
        use crate::args::{Cli, Command};
        use clap::Parser;
        let line =
            ["bench", "compare", "--pollux", "/p", "--pollux-poll", "adaptive", "--pollux-lun", "ram:1G"];
        let targets = ["--target", "pollux", "--target", "a=/q@busy:null:1G", "--target", "pollux@busy"];
        let Command::Compare(args) = Cli::try_parse_from([&line[..], &targets].concat()).unwrap().command
        else {
            panic!("compare was asked for")
        };
        let told = |target: &Target| {
            let What::Pollux(pollux) = &target.what else { panic!("all are pollux") };
            let PolluxOptions { path, poll, lun, .. } = pollux.options(&args);
            (path.unwrap(), poll, lun)
        };
        let of = |path: &str, poll: &str, lun: &str| (path.into(), poll.to_owned(), lun.to_owned());
        assert_eq!(
            args.targets.iter().map(told).collect::<Vec<_>>(),
            [of("/p", "adaptive", "ram:1G"), of("/q", "busy", "null:1G"), of("/p", "busy", "ram:1G")]
        );
    }

    /// Goal: what is no pollux is what it was, and can be named, too. Method: one of each.
    #[test]
    fn other_targets() {
        let parse = |text| Target::parse(text).unwrap();
        assert_eq!(parse("raw"), Target { name: "raw".into(), what: What::Raw });
        assert_eq!(parse("debian=tgt"), Target { name: "debian".into(), what: What::Tgt });
        let spdk = parse("spdk=iscsi://127.0.0.1:3260/iqn.a/2");
        let What::Running(url) = spdk.what else { panic!("it runs already") };
        assert_eq!((spdk.name.as_str(), url.target.as_str(), url.lun), ("spdk", "iqn.a", 2));
    }

    /// Goal: what is no target is told with the part that is wrong and what to write. Method: one of each kind.
    #[test]
    fn wrong_targets_are_told() {
        for (bad, cure) in [
            ("", "is none of raw, tgt"),
            ("spdk", "is none of raw, tgt"),
            ("spdk=http://x", "is none of raw, tgt"),
            ("pollux2", "is none of raw, tgt"),
            ("pollux@v2", "\"v2\" is neither adaptive nor busy"),
            ("pollux@:null:1G", "\"\" is neither adaptive nor busy"),
            ("pollux:", "write one such as null:1G"),
            ("pollux:thin:1G,data=/srv", "write data=ram:SIZE"),
            ("old=/a/pollux@busy:", "write one such as null:1G"),
            ("/a/pollux:null:1G", "write NAME=/a/pollux:null:1G"),
            ("iscsi://127.0.0.1/iqn.a/0", "write NAME=iscsi://"),
            ("spdk=iscsi://127.0.0.1/iqn.a", "iscsi://127.0.0.1/iqn.a"),
            ("=raw", "no name before"),
        ] {
            let failure = Target::parse(bad).unwrap_err().to_string();
            assert!(failure.contains(cure), "{bad}: {failure}");
        }
    }

    /// Goal: two columns never have one name. Method: two that are the same, and the cure that is told.
    #[test]
    fn names_are_told_apart() {
        let all = |texts: &[&str]| texts.iter().map(|text| Target::parse(text).unwrap()).collect::<Vec<_>>();
        let failure = check_names(&all(&["pollux", "raw", "pollux"])).unwrap_err().to_string();
        assert!(failure.contains("\"pollux\"") && failure.contains("other=pollux"), "{failure}");
        assert_eq!(check_names(&all(&["pollux", "pollux@busy", "pollux:null:1G", "other=pollux"])), Ok(()));
    }
}
