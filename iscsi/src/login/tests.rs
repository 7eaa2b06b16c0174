//! Logins as real initiators do them, each way to fail, and nonsense.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::access::{HostRule, Initiators, Target, Targets};
use crate::chap::{Algorithm, Credentials, Secret};
use crate::negotiate::DigestPolicy;

const TARGET: &str = "iqn.2026-11.io.pollux:demo";
const LINUX: &str = "iqn.1993-08.org.debian:01:5e4b1f2c3a";
const ESXI: &str = "iqn.1998-01.com.vmware:esx-1a2b3c4d";

fn name(name: &str) -> IscsiName {
    IscsiName::parse(name).unwrap()
}

fn open_access() -> Access {
    let target =
        Target { name: name(TARGET), alias: Some("demo".into()), availability: Availability::Online };
    Access { targets: vec![target], ..Access::default() }
}

fn chap_access() -> Access {
    let user = Credentials { user: "0xuser".into(), secret: Secret::new(b"initiator's secret") };
    let ours = Credentials { user: "pollux".into(), secret: Secret::new(b"target's secret") };
    let chap = Chap::new(vec![user], Some(ours), Algorithm::ALL.to_vec()).unwrap();
    let rule = HostRule { initiators: Initiators::Any, targets: Targets::All, chap: Some(chap) };
    Access { hosts: vec![rule], ..open_access() }
}

/// An initiator's end of one login.
struct Peer {
    login: Login,
    access: Access,
    request: LoginRequest,
}

impl Peer {
    fn new(access: Access) -> Peer {
        Peer::with(access, Settings::default())
    }

    fn with(access: Access, settings: Settings) -> Peer {
        let request = LoginRequest {
            transit: false,
            text_continues: false,
            current_stage: Stage::Security,
            next_stage: Stage::Security,
            version_max: 0,
            version_min: 0,
            isid: [0, 2, 0x3d, 0, 0, 1],
            tsih: 0,
            cid: 0,
            initiator_task_tag: TaskTag(0x1234),
            cmd_sn: CmdSn(77),
            exp_stat_sn: StatSn(5),
            data_bytes: 0,
        };
        Peer { login: Login::new(settings, 3), access, request }
    }

    fn raw(&mut self, data: &[u8]) -> LoginStep {
        let mut next = 0;
        let mut random = |bytes: &mut [u8]| {
            for byte in bytes {
                next += 1;
                *byte = next;
            }
        };
        self.request.data_bytes = data.len() as u32;
        self.login.handle(&self.request, data, &self.access, &mut random)
    }

    /// Sends `text`, its pairs divided by spaces, asking to go on to `next`.
    fn send(&mut self, stage: Stage, next: Option<Stage>, text: &str) -> LoginStep {
        self.request.current_stage = stage;
        self.request.transit = next.is_some();
        self.request.next_stage = next.unwrap_or(stage);
        let text = if text.is_empty() { String::new() } else { text.replace(' ', "\0") + "\0" };
        self.raw(text.as_bytes())
    }

    /// The reply's text, and the stage that it goes on to.
    fn reply(&mut self, stage: Stage, next: Option<Stage>, text: &str) -> (String, Option<Stage>) {
        match self.send(stage, next, text) {
            LoginStep::Reply(reply) => {
                assert_eq!(reply.response.status, 0);
                assert_eq!((reply.response.current_stage, reply.response.isid), (stage, self.request.isid));
                assert_eq!(reply.response.initiator_task_tag, self.request.initiator_task_tag);
                assert_eq!(reply.response.data_bytes as usize, reply.text.len());
                let next = reply.response.transit.then_some(reply.response.next_stage);
                (shown(&reply.text), next)
            }
            other => panic!("{other:?}"),
        }
    }

    /// What was agreed, and the text of the last response.
    fn enter(&mut self, stage: Stage, text: &str) -> (LoginDone, String) {
        match self.send(stage, Some(Stage::FullFeature), text) {
            LoginStep::Enter(done) => {
                let reply = self.login.accept(9);
                assert_eq!((reply.response.transit, reply.response.next_stage), (true, Stage::FullFeature));
                assert_eq!((reply.response.tsih, reply.response.status), (9, 0));
                assert_eq!(reply.response.current_stage, stage);
                (*done, shown(&reply.text))
            }
            other => panic!("{other:?}"),
        }
    }

    fn refused(&mut self, stage: Stage, next: Option<Stage>, text: &str) -> (u16, Refusal) {
        match self.send(stage, next, text) {
            LoginStep::Refused(reply, refusal) => {
                assert!(!reply.response.transit && reply.text.is_empty());
                assert!(!refusal.to_string().is_empty());
                (reply.response.status, refusal)
            }
            other => panic!("{other:?}"),
        }
    }
}

fn shown(text: &[u8]) -> String {
    String::from_utf8(text.to_vec()).unwrap().replace('\0', " ").trim_end().into()
}

fn names(initiator: &str) -> String {
    format!("InitiatorName={initiator} TargetName={TARGET} SessionType=Normal")
}

const OPERATIONAL: Option<Stage> = Some(Stage::Operational);
const FULL_FEATURE: Option<Stage> = Some(Stage::FullFeature);

/// CHAP_N and CHAP_R for the challenge in a reply.
fn prove(challenge: &str, algorithm: Algorithm, secret: &[u8]) -> String {
    let text = challenge.replace(' ', "\0");
    let pairs = Pairs::parse(text.as_bytes()).unwrap();
    assert_eq!(pairs.get("CHAP_A"), Some(&*(algorithm as u8).to_string()));
    let identifier = pairs.get("CHAP_I").unwrap().parse().unwrap();
    let challenge = crate::text::binary(pairs.get("CHAP_C").unwrap(), 64).unwrap();
    let response = chap::response_for_test(algorithm, identifier, secret, &challenge);
    let mut answer = Text::default();
    answer.push("CHAP_N", "0xuser");
    answer.push_binary("CHAP_R", &response);
    shown(&answer.into_bytes())
}

/// Goal: open-iscsi, as iscsid logs in by default: security without authentication, then all its parameters.
#[test]
fn linux_without_chap() {
    let mut peer = Peer::new(open_access());
    let first = format!("{} InitiatorAlias=box AuthMethod=None", names(LINUX));
    let reply = peer.reply(Stage::Security, OPERATIONAL, &first);
    assert_eq!(reply, ("TargetAlias=demo TargetPortalGroupTag=3 AuthMethod=None".into(), OPERATIONAL));
    assert_eq!(peer.login.first_stat_sn(), Some(StatSn(5)));
    let (done, reply) = peer.enter(
        Stage::Operational,
        "HeaderDigest=None DataDigest=None DefaultTime2Wait=2 DefaultTime2Retain=0 IFMarker=No OFMarker=No \
         ErrorRecoveryLevel=0 InitialR2T=No ImmediateData=Yes MaxBurstLength=16776192 FirstBurstLength=262144 \
         MaxOutstandingR2T=1 MaxConnections=1 DataPDUInOrder=Yes DataSequenceInOrder=Yes \
         MaxRecvDataSegmentLength=262144",
    );
    assert_eq!(
        reply,
        "MaxRecvDataSegmentLength=262144 HeaderDigest=None DataDigest=None DefaultTime2Wait=2 DefaultTime2Retain=0 \
         IFMarker=No OFMarker=No ErrorRecoveryLevel=0 InitialR2T=No ImmediateData=Yes MaxBurstLength=1048576 \
         FirstBurstLength=65536 MaxOutstandingR2T=1 MaxConnections=1 DataPDUInOrder=Yes DataSequenceInOrder=Yes"
    );
    assert_eq!((done.initiator.as_str(), done.target), (LINUX, Some(name(TARGET))));
    assert_eq!((done.initiator_alias.as_deref(), done.user), (Some("box"), None));
    assert_eq!((done.isid, done.tsih, done.cid, done.cmd_sn), (peer.request.isid, 0, 0, CmdSn(77)));
    assert_eq!(done.parameters.their_max_recv_data_segment_length, 262_144);
    assert_eq!((done.parameters.max_burst_length, done.parameters.first_burst_length), (1 << 20, 65536));
    assert!(!done.parameters.initial_r2t && done.parameters.immediate_data);
}

/// Goal: open-iscsi with CHAP both ways, its list of algorithms, and our proof.
#[test]
fn linux_with_mutual_chap() {
    let mut peer = Peer::new(chap_access());
    let first = format!("{} AuthMethod=CHAP", names(LINUX));
    let (reply, next) = peer.reply(Stage::Security, OPERATIONAL, &first);
    assert_eq!((&*reply, next), ("TargetAlias=demo TargetPortalGroupTag=3 AuthMethod=CHAP", None));
    let (challenge, next) = peer.reply(Stage::Security, None, "CHAP_A=8,7,6,5");
    assert_eq!(next, None);
    let answer = prove(&challenge, Algorithm::Sha3, b"initiator's secret") + " CHAP_I=200 CHAP_C=0x0102";
    let (proof, next) = peer.reply(Stage::Security, OPERATIONAL, &answer);
    assert_eq!(next, OPERATIONAL);
    let mut expected = Text::default();
    expected.push("CHAP_N", "pollux");
    let response = chap::response_for_test(Algorithm::Sha3, 200, b"target's secret", &[1, 2]);
    expected.push_binary("CHAP_R", &response);
    assert_eq!(proof, shown(&expected.into_bytes()));
    let (done, _) = peer.enter(Stage::Operational, "HeaderDigest=CRC32C,None DataDigest=CRC32C,None");
    assert_eq!(done.user.as_deref(), Some("0xuser"));
    assert!(done.parameters.header_digest && done.parameters.data_digest);
}

/// Goal: libiscsi without a user begins in the operational stage and is through with one request.
#[test]
fn libiscsi_without_user() {
    let mut peer = Peer::new(open_access());
    let offers = format!(
        "InitiatorName={LINUX} InitiatorAlias=x TargetName={TARGET} SessionType=Normal HeaderDigest=None,CRC32C \
         DataDigest=None InitialR2T=No ImmediateData=Yes MaxBurstLength=262144 FirstBurstLength=262144 \
         DefaultTime2Wait=2 DefaultTime2Retain=0 MaxOutstandingR2T=1 ErrorRecoveryLevel=0 IFMarker=No OFMarker=No \
         MaxConnections=1 MaxRecvDataSegmentLength=262144 DataPDUInOrder=Yes DataSequenceInOrder=Yes"
    );
    let (done, reply) = peer.enter(Stage::Operational, &offers);
    assert!(reply.starts_with(
        "TargetAlias=demo TargetPortalGroupTag=3 MaxRecvDataSegmentLength=262144 HeaderDigest=None"
    ));
    assert_eq!(done.parameters.first_burst_length, 65536);
}

/// Goal: libiscsi with a user: asks to leave the stage at once, answers in MD5, says its names a second time.
#[test]
fn libiscsi_with_user() {
    let mut peer = Peer::new(chap_access());
    let (_, next) =
        peer.reply(Stage::Security, OPERATIONAL, &format!("{} AuthMethod=CHAP,None", names(LINUX)));
    assert_eq!(next, None);
    let (challenge, _) = peer.reply(Stage::Security, None, "CHAP_A=5");
    let answer = prove(&challenge, Algorithm::Md5, b"initiator's secret");
    assert_eq!(peer.reply(Stage::Security, OPERATIONAL, &answer), (String::new(), OPERATIONAL));
    let (done, _) = peer.enter(Stage::Operational, &format!("{} HeaderDigest=None", names(LINUX)));
    assert_eq!(done.user.as_deref(), Some("0xuser"));
}

/// Goal: where nothing has to be proved, who offers CHAP and None gets None.
#[test]
fn none_is_chosen_where_nothing_is_asked() {
    let mut peer = Peer::new(open_access());
    let (reply, next) =
        peer.reply(Stage::Security, OPERATIONAL, &format!("{} AuthMethod=CHAP,None", names(LINUX)));
    assert!(reply.ends_with("AuthMethod=None"));
    assert_eq!(next, OPERATIONAL);
}

/// Goal: ESXi, discovery and then a normal session with its usual offers.
#[test]
fn esxi() {
    let mut peer = Peer::new(open_access());
    let (reply, next) = peer.reply(
        Stage::Security,
        OPERATIONAL,
        &format!("InitiatorName={ESXI} SessionType=Discovery AuthMethod=CHAP,None"),
    );
    assert_eq!((&*reply, next), ("AuthMethod=None", OPERATIONAL));
    let (done, reply) = peer.enter(
        Stage::Operational,
        "HeaderDigest=None DataDigest=None DefaultTime2Wait=0 DefaultTime2Retain=0 IFMarker=No OFMarker=No \
         ErrorRecoveryLevel=0 MaxRecvDataSegmentLength=32768",
    );
    assert_eq!((done.target, done.parameters.session_type), (None, SessionType::Discovery));
    assert!(reply.contains("ErrorRecoveryLevel=0"));

    let mut peer = Peer::new(open_access());
    peer.reply(
        Stage::Security,
        OPERATIONAL,
        &format!("{} AuthMethod=None", names("iqn.1998-01.com.vmware:ESX-1A2B3C4D")),
    );
    let (done, reply) = peer.enter(
        Stage::Operational,
        "HeaderDigest=None DataDigest=None MaxConnections=1 InitialR2T=No ImmediateData=Yes FirstBurstLength=262144 \
         MaxBurstLength=262144 MaxRecvDataSegmentLength=131072 MaxOutstandingR2T=1 DefaultTime2Wait=0 \
         DefaultTime2Retain=0 ErrorRecoveryLevel=0 DataPDUInOrder=Yes DataSequenceInOrder=Yes IFMarker=No OFMarker=No \
         X-com.vmware.key=1",
    );
    assert_eq!(done.initiator.as_str(), ESXI);
    assert!(reply.contains("FirstBurstLength=65536 MaxBurstLength=262144"));
    assert!(reply.ends_with("X-com.vmware.key=NotUnderstood"));
    assert_eq!((done.parameters.default_time2wait, done.parameters.default_time2retain), (0, 0));
}

/// Goal: from the security stage straight to full feature phase, all parameters at their defaults.
#[test]
fn straight_through() {
    let mut peer = Peer::new(open_access());
    let (done, _) = peer.enter(Stage::Security, &names(LINUX));
    assert_eq!(done.parameters, Parameters::default());
}

/// Goal: steps without T, with nothing to say, wait for the other.
#[test]
fn patience() {
    let mut peer = Peer::new(open_access());
    peer.reply(Stage::Security, None, &names(LINUX));
    assert_eq!(peer.reply(Stage::Security, None, "AuthMethod=None"), ("AuthMethod=None".into(), None));
    assert_eq!(peer.reply(Stage::Security, OPERATIONAL, ""), (String::new(), OPERATIONAL));
    assert_eq!(peer.reply(Stage::Operational, None, "HeaderDigest=None").1, None);
    assert_eq!(peer.reply(Stage::Operational, None, ""), (String::new(), None));
    peer.enter(Stage::Operational, "");
}

/// Goal: text continued over PDUs is the same text. Method: cut it at every place, in the middle of keys too.
#[test]
fn continued_text() {
    let text = format!("{} HeaderDigest=CRC32C", names(LINUX)).replace(' ', "\0") + "\0";
    for cut in 0..=text.len() {
        let mut peer = Peer::new(open_access());
        peer.request.current_stage = Stage::Operational;
        peer.request.text_continues = true;
        let LoginStep::Reply(reply) = peer.raw(&text.as_bytes()[..cut]) else { panic!() };
        assert!(reply.text.is_empty() && !reply.response.transit && !reply.response.text_continues);
        peer.request.text_continues = false;
        peer.request.transit = true;
        peer.request.next_stage = Stage::FullFeature;
        let LoginStep::Enter(done) = peer.raw(&text.as_bytes()[cut..]) else { panic!() };
        assert!(done.parameters.header_digest);
    }
}

/// Goal: an answer over 8192 bytes goes out in pieces, the stage changes with the last. Method: unknown keys.
#[test]
fn long_answers() {
    let keys: Vec<String> = (0..120).map(|key| format!("X-{}{key:03}=1", "k".repeat(55))).collect();
    for next in [OPERATIONAL, FULL_FEATURE] {
        let mut peer = Peer::new(open_access());
        let text = format!("{} {}", names(LINUX), keys.join(" "));
        let LoginStep::Reply(first) = peer.send(Stage::Security, next, &text) else { panic!() };
        assert_eq!(first.text.len(), 8192);
        assert!(first.response.text_continues && !first.response.transit);
        let last = match peer.send(Stage::Security, next, "") {
            LoginStep::Reply(last) if next == OPERATIONAL => last,
            LoginStep::Enter(_) if next == FULL_FEATURE => peer.login.accept(1),
            other => panic!("{other:?}"),
        };
        assert!(!last.response.text_continues && last.response.transit);
        let whole = [first.text, last.text].concat();
        assert_eq!(
            Pairs::parse(&whole).unwrap().iter().filter(|pair| pair.1 == "NotUnderstood").count(),
            120
        );
        if next == OPERATIONAL {
            peer.enter(Stage::Operational, "");
        }
        let mut peer = Peer::new(open_access());
        let _ = peer.send(Stage::Security, next, &text);
        assert_eq!(peer.refused(Stage::Security, next, "A=1"), (0x200, Refusal::Continuation));
    }
}

/// Goal: each status for its reason. Method: one wrong thing in an otherwise right first request.
#[test]
fn every_status() {
    let security =
        |access: Access, text: &str| Peer::new(access).refused(Stage::Security, OPERATIONAL, text).0;
    let first = format!("{} AuthMethod=None", names(LINUX));
    assert_eq!(security(chap_access(), &first), 0x201);
    assert_eq!(security(chap_access(), &names(LINUX)), 0x201);
    assert_eq!(security(open_access(), &format!("{} AuthMethod=CHAP", names(LINUX))), 0x201);
    assert_eq!(security(open_access(), &format!("{} AuthMethod=KRB5", names(LINUX))), 0x201);
    assert_eq!(Peer::new(chap_access()).refused(Stage::Operational, FULL_FEATURE, &names(LINUX)).0, 0x201);

    let mut strangers = open_access();
    let rule = |targets| HostRule { initiators: Initiators::Named(name(ESXI)), targets, chap: None };
    strangers.hosts = vec![rule(Targets::All)];
    assert_eq!(security(strangers.clone(), &first), 0x202);
    let elsewhere = first.replace(":demo", ":nowhere");
    assert_eq!(security(strangers, &elsewhere), 0x202);
    let other_targets = Access { hosts: vec![rule(Targets::Named(vec![]))], ..open_access() };
    assert_eq!(security(other_targets, &first.replace(LINUX, ESXI)), 0x202);

    assert_eq!(security(open_access(), &elsewhere), 0x203);
    let unavailable = |availability| {
        let mut access = open_access();
        access.targets[0].availability = availability;
        access
    };
    assert_eq!(security(unavailable(Availability::Removed), &first), 0x204);
    assert_eq!(security(unavailable(Availability::Offline), &first), 0x301);

    let mut peer = Peer::new(open_access());
    (peer.request.version_min, peer.request.version_max) = (1, 2);
    assert_eq!(peer.refused(Stage::Security, OPERATIONAL, &first), (0x205, Refusal::Version(1)));

    assert_eq!(security(open_access(), &format!("TargetName={TARGET}")), 0x207);
    assert_eq!(security(open_access(), &format!("InitiatorName={LINUX}")), 0x207);
    assert_eq!(security(open_access(), ""), 0x207);
    assert_eq!(security(open_access(), &first.replace("Normal", "Boot")), 0x209);
    assert_eq!(security(open_access(), &first.replace(LINUX, "host")), 0x200);
    assert_eq!(security(open_access(), &first.replace(TARGET, "demo")), 0x200);
    assert_eq!(security(open_access(), "NoValue"), 0x200);
    assert_eq!(security(open_access(), &format!("{first} {first}")), 0x200);

    // What only the caller can know.
    for (status, code) in [
        (Status::TooManyConnections, 0x206),
        (Status::SessionDoesNotExist, 0x20a),
        (Status::TargetError, 0x300),
        (Status::OutOfResources, 0x302),
    ] {
        let mut peer = Peer::new(open_access());
        peer.request.tsih = 4;
        let LoginStep::Enter(done) = peer.send(Stage::Security, FULL_FEATURE, &names(LINUX)) else {
            panic!()
        };
        assert_eq!(done.tsih, 4);
        let reply = peer.login.refuse(status);
        assert_eq!((reply.response.status, reply.response.transit, reply.response.tsih), (code, false, 4));
    }
    let reply = Login::new(Settings::default(), 1).refuse(Status::InvalidDuringLogin);
    assert_eq!((reply.response.status, reply.response.initiator_task_tag), (0x20b, TaskTag::RESERVED));
}

/// Goal: no way round CHAP. Method: each short cut.
#[test]
fn chap_has_no_short_cuts() {
    let first = format!("{} AuthMethod=CHAP", names(LINUX));
    let begin = || {
        let mut peer = Peer::new(chap_access());
        peer.reply(Stage::Security, None, &first);
        peer
    };
    let challenged = || {
        let mut peer = begin();
        let (challenge, _) = peer.reply(Stage::Security, OPERATIONAL, "CHAP_A=5");
        (peer, prove(&challenge, Algorithm::Md5, b"initiator's secret"))
    };
    // Leaving without an answer.
    assert_eq!(begin().refused(Stage::Security, OPERATIONAL, "").0, 0x201);
    assert_eq!(begin().refused(Stage::Security, FULL_FEATURE, "HeaderDigest=None").0, 0x201);
    assert_eq!(challenged().0.refused(Stage::Security, OPERATIONAL, "").0, 0x201);
    // A second thought, a second challenge, an answer before the challenge, none to answer.
    assert_eq!(begin().refused(Stage::Security, None, "AuthMethod=None").0, 0x200);
    assert_eq!(challenged().0.refused(Stage::Security, None, "CHAP_A=5").0, 0x201);
    let (mut peer, answer) = challenged();
    assert_eq!(begin().refused(Stage::Security, OPERATIONAL, &answer).0, 0x201);
    assert_eq!(
        Peer::new(chap_access()).refused(Stage::Security, None, &format!("{} {answer}", names(LINUX))).0,
        0x201
    );
    // The next stage before this one is done.
    assert_eq!(
        begin().refused(Stage::Operational, FULL_FEATURE, "").1,
        Refusal::WrongStage(Stage::Operational)
    );
    // A wrong answer, half an answer, the challenge thrown back.
    let (mut wrong, _) = challenged();
    let text = answer.replace("CHAP_R=0x", "CHAP_R=0x00");
    assert_eq!(
        wrong.refused(Stage::Security, OPERATIONAL, &text).1,
        Refusal::Chap(ChapError::MalformedResponse)
    );
    assert_eq!(challenged().0.refused(Stage::Security, OPERATIONAL, "CHAP_N=0xuser").0, 0x201);
    let (mut reflecting, _) = challenged();
    let challenge: Vec<u8> = (2..=17).collect(); // byte 1 was the identifier
    let mut thrown_back = Text::default();
    thrown_back.push("CHAP_I", 1);
    thrown_back.push_binary("CHAP_C", &challenge);
    let text = format!("{answer} {}", shown(&thrown_back.into_bytes()));
    let (status, refusal) = reflecting.refused(Stage::Security, OPERATIONAL, &text);
    assert_eq!((status, refusal), (0x201, Refusal::Chap(ChapError::Reflected)));
    // No algorithm in common.
    for list in ["CHAP_A=56", "CHAP_A="] {
        assert_eq!(begin().refused(Stage::Security, None, list).0, 0x201);
    }
    // The rule goes while the login is under way; and the right answer still works.
    let (mut orphan, _) = challenged();
    orphan.access.hosts[0].initiators = Initiators::Named(name(ESXI));
    assert_eq!(orphan.refused(Stage::Security, OPERATIONAL, &answer).0, 0x202);
    assert_eq!(peer.reply(Stage::Security, None, &answer), (String::new(), None));
    assert_eq!(peer.reply(Stage::Security, OPERATIONAL, ""), (String::new(), OPERATIONAL));
    peer.enter(Stage::Operational, "");
}

/// Goal: discovery by its rule: for everybody, or as for targets; CHAP for those who offer nothing else.
#[test]
fn discovery_rules() {
    let first = |methods: &str| format!("InitiatorName={LINUX} SessionType=Discovery AuthMethod={methods}");
    let mut access = chap_access();
    assert!(Peer::new(access.clone()).reply(Stage::Security, None, &first("CHAP,None")).0.ends_with("None"));
    let mut peer = Peer::new(access.clone());
    assert!(peer.reply(Stage::Security, None, &first("CHAP")).0.ends_with("CHAP"));
    assert_eq!(peer.refused(Stage::Security, OPERATIONAL, "").0, 0x201);
    access.discovery = DiscoveryRule::Hosts;
    assert!(Peer::new(access.clone()).reply(Stage::Security, None, &first("CHAP,None")).0.ends_with("CHAP"));
    assert_eq!(Peer::new(access.clone()).refused(Stage::Security, None, &first("None")).0, 0x201);
    access.hosts[0].initiators = Initiators::Named(name(ESXI));
    assert_eq!(Peer::new(access.clone()).refused(Stage::Security, None, &first("None")).0, 0x202);
    access.discovery = DiscoveryRule::Everybody;
    Peer::new(access).reply(Stage::Security, None, &first("None"));
}

/// Goal: stages go forward, identities stay, requests are counted.
#[test]
fn the_order_of_requests() {
    use Stage::{FullFeature, Operational, Reserved, Security};
    for (from, to) in [
        (Security, Security),
        (Security, Reserved),
        (Operational, Security),
        (Operational, Operational),
        (Operational, Reserved),
    ] {
        let refused = Peer::new(open_access()).refused(from, Some(to), &names(LINUX));
        assert_eq!(refused, (0x200, Refusal::WrongTransition(from, to)));
    }
    for stage in [Reserved, FullFeature] {
        let refused = Peer::new(open_access()).refused(stage, None, &names(LINUX));
        assert_eq!(refused, (0x200, Refusal::WrongStage(stage)));
    }
    let mut peer = Peer::new(open_access());
    peer.reply(Operational, None, &names(LINUX));
    assert_eq!(peer.refused(Security, None, ""), (0x200, Refusal::WrongStage(Security)));

    let changes: [fn(&mut LoginRequest); 3] =
        [|request| request.isid[5] += 1, |request| request.tsih += 1, |request| request.cid += 1];
    for change in changes {
        let mut peer = Peer::new(open_access());
        peer.reply(Security, None, &names(LINUX));
        change(&mut peer.request);
        assert_eq!(peer.refused(Security, None, ""), (0x200, Refusal::ChangedIdentity));
    }
    for text in [
        format!("InitiatorName={ESXI}"),
        "SessionType=Discovery".into(),
        "TargetName=iqn.2026-11.io.pollux:other".into(),
    ] {
        let mut peer = Peer::new(open_access());
        peer.reply(Security, None, &names(LINUX));
        assert!(matches!(peer.refused(Security, None, &text), (0x200, Refusal::Redeclared(_))));
    }
    let mut peer = Peer::new(open_access());
    peer.request.text_continues = true;
    assert_eq!(peer.refused(Security, OPERATIONAL, ""), (0x200, Refusal::Continuation));
    let mut peer = Peer::new(open_access());
    peer.reply(Security, None, &names(LINUX));
    for _ in 1..REQUESTS_MAX {
        peer.reply(Security, None, "");
    }
    assert_eq!(peer.refused(Security, None, ""), (0x200, Refusal::TooManyRequests));
    let mut peer = Peer::new(open_access());
    peer.request.text_continues = true;
    assert!(matches!(peer.raw(&[b'x'; 16384]), LoginStep::Reply(_)));
    assert!(matches!(peer.raw(b"x"), LoginStep::Refused(_, Refusal::Text(TextError::TooLong))));
}

/// Goal: keys of authentication outside their stage, and SendTargets in a login, are refused by value.
#[test]
fn keys_out_of_place() {
    let mut peer = Peer::new(open_access());
    let (reply, _) = peer.reply(
        Stage::Operational,
        None,
        &format!("{} AuthMethod=None CHAP_A=5 SendTargets=All", names(LINUX)),
    );
    assert!(reply.contains("AuthMethod=Reject CHAP_A=Reject"), "{reply}");
    assert!(reply.ends_with("SendTargets=Reject"), "{reply}");
}

/// Goal: a digest that we insist on.
#[test]
fn required_digests() {
    let settings = Settings { header_digest: DigestPolicy::Require, ..Settings::default() };
    let first = |digest: &str| format!("{} HeaderDigest={digest}", names(LINUX));
    let mut peer = Peer::with(open_access(), settings);
    assert_eq!(peer.refused(Stage::Operational, FULL_FEATURE, &first("None")).0, 0x200);
    let (done, _) = Peer::with(open_access(), settings).enter(Stage::Operational, &first("None,CRC32C"));
    assert!(done.parameters.header_digest);
}

proptest! {
    /// Goal: no sequence of requests panics, nor gets in without proof where proof is required. Method: any
    /// headers, with text made of the keys that matter and of any bytes; the secret is never used.
    #[test]
    fn nobody_gets_in_by_nonsense(
        requests in vec((any::<(u8, bool, bool)>(), vec(prop_oneof![
            Just(format!("InitiatorName={LINUX}")),
            Just(format!("TargetName={TARGET}")),
            Just("SessionType=Normal".to_string()),
            Just("AuthMethod=CHAP".to_string()),
            Just("AuthMethod=CHAP,None".to_string()),
            Just("AuthMethod=None".to_string()),
            Just("CHAP_A=5".to_string()),
            Just("CHAP_N=0xuser".to_string()),
            "CHAP_R=0x[0-9a-f]{32}",
            "CHAP_I=[0-9]{1,3}",
            "CHAP_C=0x[0-9a-f]{0,8}",
            Just("HeaderDigest=CRC32C".to_string()),
            "[A-Za-z]{1,9}=[ -~]{0,9}",
            any::<String>(),
        ], 0..6)), 1..12),
        open: bool,
    ) {
        let mut peer = Peer::new(if open { open_access() } else { chap_access() });
        for ((stages, transit, continues), pairs) in requests {
            peer.request.current_stage = if stages & 0x40 == 0 { Stage::Security } else { Stage::from_bits(stages >> 2) };
            peer.request.next_stage = Stage::from_bits(if stages & 0x80 == 0 { stages } else { 3 });
            peer.request.transit = transit;
            peer.request.text_continues = continues && !transit && stages & 0x20 != 0;
            match peer.raw((pairs.join("\0") + "\0").as_bytes()) {
                LoginStep::Reply(reply) => {
                    prop_assert!(reply.text.len() <= 8192);
                    prop_assert_eq!(reply.response.status, 0);
                }
                LoginStep::Enter(done) => {
                    prop_assert!(open, "{:?}", done);
                    prop_assert_eq!(peer.login.accept(1).response.tsih, 1);
                    break;
                }
                LoginStep::Refused(reply, refusal) => {
                    prop_assert_eq!(reply.response.status, refusal.status() as u16);
                    break;
                }
            }
        }
    }
}
