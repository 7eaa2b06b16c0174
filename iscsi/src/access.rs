//! Who may log in to what: a value that the program makes from its settings and hands to every login.
//!
//! Read-only here. A change is a new value; a login looks its rule up again at every step, so it takes effect on
//! logins that are under way.

use crate::chap::Chap;
use crate::name::IscsiName;

/// A target, as a login sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// TargetName.
    pub name: IscsiName,
    /// TargetAlias, if it has one: at most 255 bytes, no NUL.
    pub alias: Option<String>,
    /// Whether it takes logins now.
    pub availability: Availability,
}

/// Whether a target takes logins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Availability {
    /// It does.
    #[default]
    Online,
    /// Not now; try again (status 0301h).
    Offline,
    /// Never again (status 0204h).
    Removed,
}

/// Which initiators a rule is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Initiators {
    /// All that have no rule of their own.
    Any,
    /// One.
    Named(IscsiName),
}

/// Which targets a rule lets in to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// All.
    All,
    /// Some.
    Named(Vec<IscsiName>),
}

/// What a host may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRule {
    /// For whom.
    pub initiators: Initiators,
    /// To what.
    pub targets: Targets,
    /// What it has to prove; `None`: nothing.
    pub chap: Option<Chap>,
}

/// Who may open discovery sessions. Either way they see only targets that they may log in to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DiscoveryRule {
    /// Everybody, without proof. CHAP is done with those who offer nothing else and have a rule for it.
    #[default]
    Everybody,
    /// Hosts that have a rule, and by that rule.
    Hosts,
}

/// Who may log in to what.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Access {
    /// In the order in which SendTargets lists them.
    pub targets: Vec<Target>,
    /// If there are none, everybody may log in to everything, without proof.
    pub hosts: Vec<HostRule>,
    /// Who may ask what there is.
    pub discovery: DiscoveryRule,
}

/// What the rules say about an initiator.
#[derive(Clone, Copy, Debug)]
pub enum Admission<'a> {
    /// There are no rules.
    Everything,
    /// This one is for it.
    Rule(&'a HostRule),
    /// No rule is.
    Nothing,
}

impl<'a> Admission<'a> {
    /// What the initiator has to prove.
    pub fn chap(self) -> Option<&'a Chap> {
        match self {
            Admission::Rule(rule) => rule.chap.as_ref(),
            Admission::Everything | Admission::Nothing => None,
        }
    }

    /// Whether it may log in to this target.
    pub fn allows(self, target: &IscsiName) -> bool {
        match self {
            Admission::Everything | Admission::Rule(HostRule { targets: Targets::All, .. }) => true,
            Admission::Rule(HostRule { targets: Targets::Named(names), .. }) => names.contains(target),
            Admission::Nothing => false,
        }
    }
}

impl Access {
    /// The rule for an initiator: its own before the one for any.
    pub fn admission(&self, initiator: &IscsiName) -> Admission<'_> {
        if self.hosts.is_empty() {
            return Admission::Everything;
        }
        let named =
            |rule: &&HostRule| matches!(&rule.initiators, Initiators::Named(name) if name == initiator);
        let any = |rule: &&HostRule| rule.initiators == Initiators::Any;
        match self.hosts.iter().find(named).or_else(|| self.hosts.iter().find(any)) {
            Some(rule) => Admission::Rule(rule),
            None => Admission::Nothing,
        }
    }

    /// The target of that name.
    pub fn target(&self, name: &IscsiName) -> Option<&Target> {
        self.targets.iter().find(|target| target.name == *name)
    }

    /// The targets that an initiator may be told of: those it may log in to, removed ones left out.
    pub fn visible_to(&self, initiator: &IscsiName) -> impl Iterator<Item = &Target> {
        let admission = self.admission(initiator);
        self.targets.iter().filter(move |target| {
            target.availability != Availability::Removed && admission.allows(&target.name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> IscsiName {
        IscsiName::parse(name).unwrap()
    }

    fn target(target: &str, availability: Availability) -> Target {
        Target { name: name(target), alias: None, availability }
    }

    fn rule(initiators: Initiators, targets: Targets) -> HostRule {
        HostRule { initiators, targets, chap: None }
    }

    /// Goal: no rules let everybody in; a host's own rule comes before the general one; the rest see nothing.
    #[test]
    fn rules() {
        let (a, b) = (name("iqn.2026-11.io.pollux:a"), name("iqn.2026-11.io.pollux:b"));
        let (host, other) = (name("iqn.1998-01.com.vmware:host"), name("iqn.1998-01.com.vmware:other"));
        let mut access = Access {
            targets: vec![
                target(a.as_str(), Availability::Online),
                target(b.as_str(), Availability::Offline),
                target("iqn.2026-11.io.pollux:gone", Availability::Removed),
            ],
            ..Access::default()
        };
        let seen = |access: &Access, host: &IscsiName| access.visible_to(host).count();
        assert_eq!((seen(&access, &host), seen(&access, &other)), (2, 2));
        access.hosts.push(rule(Initiators::Named(host.clone()), Targets::Named(vec![b.clone()])));
        assert_eq!((seen(&access, &host), seen(&access, &other)), (1, 0));
        assert!(access.admission(&host).allows(&b) && !access.admission(&host).allows(&a));
        access.hosts.insert(0, rule(Initiators::Any, Targets::All));
        assert_eq!((seen(&access, &host), seen(&access, &other)), (1, 2));
        assert_eq!(access.target(&a).map(|target| target.availability), Some(Availability::Online));
        assert!(access.target(&host).is_none());
    }
}
