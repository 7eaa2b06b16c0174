//! Text requests in full feature phase: SendTargets (RFC 7143 appendix C), and what little else may be said there.
//!
//! A request that can't be answered in text is rejected as a whole, with its header: no negotiation of ours gets
//! stuck half-way, and the libiscsi suite expects it of wrong keys too, where RFC 7143 §6.2 would have
//! `NotUnderstood`. That word is still the answer where a request also has keys that we know.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::access::{Access, Target};
use crate::name::IscsiName;
use crate::negotiate::{self, Key};
use crate::pdu::decode::RejectReason;
use crate::text::{Pairs, Text};

/// A way to our targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portal {
    /// What it listens on; may be a wildcard.
    pub address: SocketAddr,
    /// TargetPortalGroupTag.
    pub group_tag: u16,
}

/// Who asks, and from where.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// InitiatorName.
    pub initiator: &'a IscsiName,
    /// The target of a normal session; `None` in a discovery session.
    pub target: Option<&'a IscsiName>,
    /// Our end of the connection, and the group of the portal that accepted it.
    pub reached: Portal,
}

/// What becomes of a text request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextAnswer {
    /// Answer with this text, in pieces if it is longer than the initiator takes.
    Reply {
        /// The pairs.
        text: Vec<u8>,
        /// The initiator's MaxRecvDataSegmentLength from the next PDU on, in bytes, if it declared one.
        their_max_recv_data_segment_length: Option<u32>,
    },
    /// Answer with a Reject that carries the request's header.
    Reject(RejectReason),
}

/// Answers a text request that is whole. `portals` are all that there are, in the order to list them.
pub fn answer(request: &[u8], asker: &Asker<'_>, access: &Access, portals: &[Portal]) -> TextAnswer {
    let Ok(pairs) = Pairs::parse(request) else {
        return TextAnswer::Reject(RejectReason::ProtocolError);
    };
    let mut reply = Text::default();
    let outcome = negotiate::renegotiate(&pairs, &mut reply);
    if !outcome.understood && !pairs.is_empty() {
        return TextAnswer::Reject(RejectReason::ProtocolError);
    }
    if let Some(wanted) = pairs.get(Key::SendTargets.name())
        && send_targets(wanted, asker, access, portals, &mut reply).is_err()
    {
        return TextAnswer::Reject(RejectReason::ProtocolError);
    }
    TextAnswer::Reply {
        text: reply.into_bytes(),
        their_max_recv_data_segment_length: outcome.their_max_recv_data_segment_length,
    }
}

/// A value that SendTargets does not have here.
struct WrongValue;

fn send_targets(
    wanted: &str,
    asker: &Asker<'_>,
    access: &Access,
    portals: &[Portal],
    reply: &mut Text,
) -> Result<(), WrongValue> {
    let only = match (wanted, asker.target) {
        ("All", None) => None,
        // Appendix C has `All` for discovery sessions alone; libiscsi asks for it in normal ones. They hear of their
        // own target, as with the empty value, so nothing is given away.
        ("All" | "", Some(own)) => Some(own.clone()),
        ("", None) => return Err(WrongValue),
        (name, own) => {
            let name = IscsiName::parse(name).map_err(|_| WrongValue)?;
            if own.is_some_and(|own| *own != name) {
                return Err(WrongValue);
            }
            Some(name)
        }
    };
    let addresses = addresses(&asker.reached, portals);
    for target in access.visible_to(asker.initiator) {
        if only.as_ref().is_none_or(|only| target.name == *only) {
            list(target, &addresses, reply);
        }
    }
    Ok(())
}

fn list(target: &Target, addresses: &[Portal], reply: &mut Text) {
    reply.push(Key::TargetName.name(), &target.name);
    for portal in addresses {
        reply.push(Key::TargetAddress.name(), TargetAddress(*portal));
    }
}

/// Where to find us, the way that the initiator came first. A wildcard stands for the address that was reached, if
/// it is of that kind. What only our own host can reach is told only to that.
fn addresses(reached: &Portal, portals: &[Portal]) -> Vec<Portal> {
    let here = reached.address.ip().to_canonical();
    let mut addresses = vec![Portal { address: SocketAddr::new(here, reached.address.port()), ..*reached }];
    for portal in portals {
        let configured = portal.address.ip().to_canonical();
        let ip = if configured.is_unspecified() { here } else { configured };
        let address = SocketAddr::new(ip, portal.address.port());
        let is_known = addresses.iter().any(|known| known.address == address);
        let is_other_kind = configured.is_ipv4() != ip.is_ipv4();
        if !is_known && !is_other_kind && [0, reach(here)].contains(&reach(ip)) {
            addresses.push(Portal { address, ..*portal });
        }
    }
    addresses
}

/// How near one has to be to reach an address: 0 anywhere, 1 on the link, 2 on the host.
fn reach(ip: IpAddr) -> u8 {
    let on_link = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_loopback() { 2 } else { u8::from(on_link) }
}

/// `address:port,tag`, IPv6 in brackets and without its zone, which is nobody else's business (RFC 7143 §13.8).
struct TargetAddress(Portal);

impl fmt::Display for TargetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Portal { address, group_tag } = self.0;
        match address.ip() {
            IpAddr::V4(ip) => write!(f, "{ip}:{},{group_tag}", address.port()),
            IpAddr::V6(ip) => write!(f, "[{ip}]:{},{group_tag}", address.port()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::access::{Availability, HostRule, Initiators, Targets};

    const A: &str = "iqn.2026-11.io.pollux:a";
    const B: &str = "iqn.2026-11.io.pollux:b";
    const HOST: &str = "iqn.1998-01.com.vmware:host";

    fn name(name: &str) -> IscsiName {
        IscsiName::parse(name).unwrap()
    }

    fn portal(address: &str, group_tag: u16) -> Portal {
        Portal { address: address.parse().unwrap(), group_tag }
    }

    fn access() -> Access {
        let target = |target| Target { name: name(target), alias: None, availability: Availability::Online };
        Access { targets: vec![target(A), target(B)], ..Access::default() }
    }

    /// The answer as text with spaces for NULs, or the reject reason.
    fn ask(request: &str, target: Option<&str>, access: &Access) -> Result<String, RejectReason> {
        let target = target.map(name);
        let initiator = name(HOST);
        let asker =
            Asker { initiator: &initiator, target: target.as_ref(), reached: portal("10.0.0.1:3260", 1) };
        match answer(request.replace(' ', "\0").as_bytes(), &asker, access, &[portal("10.0.0.1:3260", 1)]) {
            TextAnswer::Reply { text, .. } => {
                Ok(String::from_utf8(text).unwrap().replace('\0', " ").trim_end().into())
            }
            TextAnswer::Reject(reason) => Err(reason),
        }
    }

    fn listed(names: &[&str]) -> String {
        let each = |name: &&str| format!("TargetName={name} TargetAddress=10.0.0.1:3260,1");
        names.iter().map(each).collect::<Vec<_>>().join(" ")
    }

    /// Goal: who asks what in which session hears what. Method: RFC 7143 appendix C, row by row, and the suite's.
    #[test]
    fn send_targets_by_session() {
        let access = access();
        let refused = Err(RejectReason::ProtocolError);
        for (value, discovery, normal) in [
            ("All", Ok(listed(&[A, B])), Ok(listed(&[A]))),
            ("", refused.clone(), Ok(listed(&[A]))),
            (A, Ok(listed(&[A])), Ok(listed(&[A]))),
            ("IQN.2026-11.io.pollux:A", Ok(listed(&[A])), Ok(listed(&[A]))),
            (B, Ok(listed(&[B])), refused.clone()),
            ("iqn.2026-11.io.pollux:c", Ok(String::new()), refused.clone()),
            ("Alle", refused.clone(), refused.clone()),
            ("A", refused.clone(), refused.clone()),
            ("all", refused.clone(), refused.clone()),
        ] {
            let request = format!("SendTargets={value} ");
            assert_eq!(ask(&request, None, &access), discovery, "{value} in discovery");
            assert_eq!(ask(&request, Some(A), &access), normal, "{value} in a normal session");
        }
        for request in
            ["SendTarget=All ", "sendtargets=All ", "SendTargets ", "SendTargets=All SendTargets=All "]
        {
            assert_eq!(ask(request, Some(A), &access), refused, "{request}");
        }
        assert_eq!(ask("", Some(A), &access), Ok(String::new()));
    }

    /// Goal: other keys beside it are answered, and a declared length is handed on.
    #[test]
    fn other_keys() {
        assert_eq!(
            ask("MaxBurstLength=512 Foo=1 ", Some(A), &access()),
            Ok("MaxBurstLength=Reject Foo=NotUnderstood".into())
        );
        let initiator = name(HOST);
        let asker = Asker { initiator: &initiator, target: None, reached: portal("10.0.0.1:3260", 1) };
        let answer = answer(b"MaxRecvDataSegmentLength=65536\0", &asker, &access(), &[]);
        let expected = TextAnswer::Reply { text: vec![], their_max_recv_data_segment_length: Some(65536) };
        assert_eq!(answer, expected);
    }

    /// Goal: nobody hears of what they may not log in to, nor of what is gone.
    #[test]
    fn lists_only_what_is_allowed() {
        let mut access = access();
        let rule = |initiators, targets| HostRule { initiators, targets, chap: None };
        access.hosts.push(rule(Initiators::Named(name(HOST)), Targets::Named(vec![name(B)])));
        assert_eq!(ask("SendTargets=All ", None, &access), Ok(listed(&[B])));
        assert_eq!(ask(&format!("SendTargets={A} "), None, &access), Ok(String::new()));
        access.targets[1].availability = Availability::Removed;
        assert_eq!(ask("SendTargets=All ", None, &access), Ok(String::new()));
        access.hosts[0] = rule(Initiators::Named(name("iqn.1998-01.com.vmware:other")), Targets::All);
        assert_eq!(ask("SendTargets=All ", None, &access), Ok(String::new()));
    }

    /// Goal: addresses that the initiator can use, its own way first, no wildcard ever.
    #[test]
    fn lists_addresses_that_can_be_reached() {
        let shown = |reached, portals: &[&str]| {
            let portals: Vec<_> = portals.iter().map(|address| portal(address, 1)).collect();
            let listed = addresses(&portal(reached, 1), &portals);
            listed.iter().map(|portal| TargetAddress(*portal).to_string()).collect::<Vec<_>>().join(" ")
        };
        for (reached, portals, expected) in [
            ("10.0.0.1:3260", &["0.0.0.0:3260"][..], "10.0.0.1:3260,1"),
            ("10.0.0.1:3260", &["10.0.0.2:3260", "10.0.0.1:3260"], "10.0.0.1:3260,1 10.0.0.2:3260,1"),
            ("10.0.0.2:3261", &["0.0.0.0:3260", "10.0.0.2:3261"], "10.0.0.2:3261,1 10.0.0.2:3260,1"),
            ("[fd00::1]:3260", &["[::]:3260", "10.0.0.1:3260"], "[fd00::1]:3260,1 10.0.0.1:3260,1"),
            ("[::ffff:10.0.0.1]:3260", &["[::]:3260"], "10.0.0.1:3260,1"),
            ("10.0.0.1:3260", &["[::]:3261"], "10.0.0.1:3260,1"),
            ("10.0.0.1:3260", &["127.0.0.1:3260", "[fe80::1]:3260"], "10.0.0.1:3260,1"),
            ("127.0.0.1:3260", &["127.0.0.1:3260", "10.0.0.1:3260"], "127.0.0.1:3260,1 10.0.0.1:3260,1"),
            ("127.0.0.1:3260", &["127.0.0.1:3260", "[fe80::1]:3260"], "127.0.0.1:3260,1"),
            ("[fe80::1%3]:3260", &["[::]:3260"], "[fe80::1]:3260,1"),
        ] {
            assert_eq!(shown(reached, portals), expected, "{reached} {portals:?}");
        }
    }

    /// Goal: each portal with its own group.
    #[test]
    fn portals_have_groups() {
        let listed =
            addresses(&portal("10.0.0.1:3260", 1), &[portal("10.0.0.1:3260", 1), portal("10.0.1.1:3260", 2)]);
        assert_eq!(TargetAddress(listed[1]).to_string(), "10.0.1.1:3260,2");
    }

    proptest! {
        /// Goal: no request panics, and every reply is text. Method: any bytes, and any value of the key.
        #[test]
        fn any_request_is_answered(bytes: Vec<u8>, value: String, discovery: bool) {
            let initiator = name(HOST);
            let target = name(A);
            let asker = Asker {
                initiator: &initiator,
                target: (!discovery).then_some(&target),
                reached: portal("[fd00::1]:3260", 1),
            };
            for request in [bytes, format!("SendTargets={value}\0").into_bytes()] {
                if let TextAnswer::Reply { text, .. } = answer(&request, &asker, &access(), &[portal("[::]:3260", 1)]) {
                    prop_assert!(text.is_empty() || text.ends_with(b"\0"));
                }
            }
        }
    }
}
