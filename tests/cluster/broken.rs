//! The checker is checked: a cluster with one rule switched off must be found out.

use weft_ipam::{Rule, Rules};

use crate::chaos::chaos;
use crate::peer::Settings;
use crate::reclaim::reclaim;
use crate::rulings::rulings;
use crate::seeds::outcome;
use crate::world::World;

/// The rule that is switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    Nothing,
    /// Frames flow before rings are compared.
    NoBarrier,
    /// Floods are not remembered.
    NoSeen,
    /// What the allocator wants kept is not.
    ForgetfulDisk,
    /// Containers that lost their address go on speaking from it.
    LoudConflicts,
    /// Names that are withdrawn stay.
    StickyNames,
    /// Packets that came before are taken again.
    NoReplayWindow,
    /// Peers go on giving out addresses without word of the electors.
    NoFence,
    /// Electors take over whoever is out of reach.
    EarlyTakeover,
    /// One elector is enough.
    MinorityRules,
    /// Electors that start do not count from there.
    NoRecount,
    /// What was acknowledged counts for what was granted since.
    BlindAcknowledgement,
    /// An elector acknowledges a peer that it voted to take over.
    NoRefusal,
    /// An elector acknowledges others though it does not know who the electors are.
    NoOutcome,
    /// A takeover undoes no grant.
    NoCover,
    /// An elector forgets its votes when it restarts.
    ForgetfulElector,
}

impl Broken {
    pub(crate) const ALL: [Self; 15] = [
        Self::NoBarrier,
        Self::NoSeen,
        Self::ForgetfulDisk,
        Self::LoudConflicts,
        Self::StickyNames,
        Self::NoReplayWindow,
        Self::NoFence,
        Self::EarlyTakeover,
        Self::MinorityRules,
        Self::NoRecount,
        Self::BlindAcknowledgement,
        Self::NoRefusal,
        Self::NoOutcome,
        Self::NoCover,
        Self::ForgetfulElector,
    ];

    /// What the rule is called on the command line.
    pub(crate) fn rule(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::NoBarrier => "barrier",
            Self::NoSeen => "seen",
            Self::ForgetfulDisk => "disk",
            Self::LoudConflicts => "silence",
            Self::StickyNames => "names",
            Self::NoReplayWindow => "replay-window",
            Self::NoFence => Rule::Fence.name(),
            Self::EarlyTakeover => Rule::TakeoverAge.name(),
            Self::MinorityRules => Rule::ElectorQuorum.name(),
            Self::NoRecount => Rule::Recount.name(),
            Self::BlindAcknowledgement => Rule::Knowledge.name(),
            Self::NoRefusal => Rule::Refusal.name(),
            Self::NoOutcome => Rule::Outcome.name(),
            Self::NoCover => Rule::Cover.name(),
            Self::ForgetfulElector => Rule::Votes.name(),
        }
    }

    /// What the rule says.
    #[allow(dead_code, reason = "the command's help is printed by the crate `sim`")]
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Nothing => "every rule stands",
            Self::NoBarrier => "a connection carries frames only when both ends have the same ring",
            Self::NoSeen => "a flood that was seen is not delivered and passed on again",
            Self::ForgetfulDisk => "an allocation is on the disk before anybody hears of it",
            Self::LoudConflicts => "a container that lost its address is silenced",
            Self::StickyNames => "a name that is withdrawn is forgotten",
            Self::NoReplayWindow => "a packet is taken once",
            Self::NoFence => "who lacks word of enough electors gives out no address",
            Self::EarlyTakeover => "a peer is taken over only after its silence",
            Self::MinorityRules => "a majority of the electors rules",
            Self::NoRecount => "silence is counted anew from an elector's start",
            Self::BlindAcknowledgement => "what is acknowledged is only what was owned then",
            Self::NoRefusal => "an elector that voted to take a peer over acknowledges it no more",
            Self::NoOutcome => {
                "an elector acknowledges nobody before it knows who the electors are"
            }
            Self::NoCover => "what a peer granted unseen is void once it is taken over",
            Self::ForgetfulElector => "an elector knows its votes after a restart",
        }
    }

    /// How a run says that the rule is missing.
    pub(crate) fn symptoms(self) -> &'static [&'static str] {
        match self {
            Self::Nothing => &[],
            Self::NoBarrier => &["is used by", "speak from"],
            Self::NoSeen | Self::NoReplayWindow => &["delivered a frame twice"],
            Self::ForgetfulDisk => &["has lost", "is used by", "may both use"],
            Self::LoudConflicts => &["speak from"],
            Self::StickyNames => &["has names"],
            Self::NoFence
            | Self::EarlyTakeover
            | Self::MinorityRules
            | Self::NoRecount
            | Self::BlindAcknowledgement
            | Self::NoRefusal
            | Self::NoOutcome
            | Self::ForgetfulElector => &["may both use"],
            // What was granted unseen may also bring the dead peer's own word back.
            Self::NoCover => &["may both use", "still owns"],
        }
    }

    /// The rules that allocators keep.
    pub(crate) fn rules(self) -> Rules {
        match self {
            Self::NoFence => Rules::breaking(Rule::Fence),
            Self::EarlyTakeover => Rules::breaking(Rule::TakeoverAge),
            Self::MinorityRules => Rules::breaking(Rule::ElectorQuorum),
            Self::NoRecount => Rules::breaking(Rule::Recount),
            Self::BlindAcknowledgement => Rules::breaking(Rule::Knowledge),
            Self::NoRefusal => Rules::breaking(Rule::Refusal),
            Self::NoOutcome => Rules::breaking(Rule::Outcome),
            Self::NoCover => Rules::breaking(Rule::Cover),
            Self::ForgetfulElector => Rules::breaking(Rule::Votes),
            Self::Nothing
            | Self::NoBarrier
            | Self::NoSeen
            | Self::ForgetfulDisk
            | Self::LoudConflicts
            | Self::StickyNames
            | Self::NoReplayWindow => Rules::KEPT,
        }
    }
}

/// Of ten seeds so many tell a narrow story.
const NARROW: u64 = 4;

/// What a seed stands for: mostly faults of all kinds, now and then one narrow story.
pub(crate) fn story(seed: u64, broken: Broken) -> World {
    match seed % 10 {
        0 => meeting(seed, broken),
        1 => flapping(seed, broken),
        2 => reclaim(seed, broken),
        3 => rulings(seed, broken),
        _ => chaos(seed, broken),
    }
}

/// Two who made a ring alone meet; their containers have the same addresses.
fn meeting(seed: u64, broken: Broken) -> World {
    let mut world = World::new(seed);
    world.is_story = true;
    for n in 0..2 {
        let mut settings = Settings::new(n);
        settings.pools = vec!["10.32.0.0/28".parse().unwrap()];
        world.add(settings);
    }
    world.net.weather.delay_ms = 200;
    world.model.strict = true;
    if world.chance(500) {
        world.net.weather.message_loss = 400;
    }
    world.broken = broken;
    for n in [0, 1, 0, 1, 0, 1, 0, 1] {
        world.launch(n);
    }
    world.run_secs(1);
    world.connect(1, 0);
    for _ in 0..400 {
        world.run_ms(10);
        for c in 0..8 {
            world.send_frame(c, None);
        }
    }
    world
}

/// Connections come and go while everybody floods, so that views of the topology differ.
fn flapping(seed: u64, broken: Broken) -> World {
    let mut world = World::new(seed);
    world.is_story = true;
    world.broken = broken;
    world.net.weather.delay_ms = 60;
    for n in 0..7 {
        let mut settings = Settings::new(n);
        settings.discovery = false;
        settings.targets = [n + 1, n + 3].map(|to| to % 7).to_vec();
        world.add(settings);
    }
    world.run_secs(3);
    let containers: Vec<_> = (0..7).map(|n| world.launch(n)).collect();
    world.run_secs(5);
    for _ in 0..40 {
        world.break_a_pipe();
        for _ in 0..10 {
            world.run_ms(20);
            for c in &containers {
                world.send_frame(*c, None);
            }
        }
    }
    world
}

/// The first run that fails in the way the missing rule makes it fail; told as an error if none does.
pub(crate) fn find_out(broken: Broken, seeds: u64) -> Result<(u64, String), String> {
    let rule = broken.rule();
    // The narrow stories are the shortest.
    let narrow = (0..seeds).filter(|seed| seed % 10 < NARROW);
    let wide = (0..seeds).filter(|seed| seed % 10 >= NARROW);
    for seed in narrow.chain(wide) {
        if let Err(why) = outcome(|| story(seed, broken)) {
            let expected = broken.symptoms().iter().any(|words| why.contains(words));
            return match expected {
                true => Ok((seed, why)),
                false => Err(format!("{rule}: seed {seed} fails in another way: {why}")),
            };
        }
    }
    Err(format!(
        "{rule}: {seeds} seeds did not notice that it is off"
    ))
}

#[test]
fn every_rule_that_is_switched_off_is_found_out() {
    for broken in Broken::ALL {
        find_out(broken, 60).unwrap();
    }
}

#[test]
fn with_nothing_wrong_nothing_is_found() {
    let mut duplicates = 0;
    for seed in 0..10 {
        meeting(seed, Broken::Nothing);
        let drops = flapping(seed, Broken::Nothing).model.drops;
        let duplicate = weft_router::drop_reason::DropReason::DuplicateFlood;
        duplicates += drops.get(&duplicate.index()).unwrap_or(&0);
    }
    assert!(duplicates > 0, "no flood came twice anywhere");
}
