//! Rules broken on purpose: in a wrapper of the role machine's `step`, or in the model of the shell around it.

use understudy_config::NodeName;
use understudy_replication::epoch::Epoch;
use understudy_replication::role::{Action, Event, Impossible, Role};

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// An opened epoch is recorded when the promotion is done, and not before it acts.
    RecordsAfterItActs,
    /// A primary takes no notice of a higher epoch.
    DoesNotFence,
    /// A promotion under way takes no notice of a higher epoch.
    PromotesOnWhateverItHears,
    /// Epochs are compared by their numbers alone.
    ComparesNumbersOnly,
    /// A node's own epoch, heard from its standby, fences it.
    TakesAnEqualEpochForHigher,
    /// What a promotion proposes is not recorded before the peers hear of it.
    ProposesWithoutRecord,
    /// A restarted primary serves at once.
    ReturnsAtOnce,
    /// A primary forgets who has joined it.
    ForgetsStandbys,
    /// A restarted primary that has standbys serves when nobody answers.
    ServesAloneDespiteStandbys,
    /// A restarted primary of more than two nodes serves alone when nobody has joined it.
    ServesAloneAmongMany,
    /// A node follows a primary that has been superseded.
    RejoinsTheSuperseded,
    /// An epoch is opened although a higher one was heard of meanwhile.
    OpensASupersededEpoch,
    /// A fenced node takes what it hears for the epoch to serve in again.
    FencedServesWhenReassured,
    /// A node that has proposed an epoch gives way to it.
    GivesWayToItself,
    /// A fence does not forbid what a promotion under way is about to start.
    FenceForbidsNothing,
    /// A node answers that it is fenced before it is.
    AnswersBeforeItIsFenced,
    /// A promotion asks the old primary alone, and no other node.
    AsksTheOldPrimaryAlone,
    /// A restarted primary is reassured by whoever answers, whatever epoch that is in.
    IsReassuredByAnybody,
    /// A standby takes what a superseded primary still sends it.
    TakesWhatTheSupersededSends,
}

impl Broken {
    pub(crate) const ALL: [Self; 19] = [
        Self::RecordsAfterItActs,
        Self::DoesNotFence,
        Self::PromotesOnWhateverItHears,
        Self::ComparesNumbersOnly,
        Self::TakesAnEqualEpochForHigher,
        Self::ProposesWithoutRecord,
        Self::ReturnsAtOnce,
        Self::ForgetsStandbys,
        Self::ServesAloneDespiteStandbys,
        Self::ServesAloneAmongMany,
        Self::RejoinsTheSuperseded,
        Self::OpensASupersededEpoch,
        Self::FencedServesWhenReassured,
        Self::GivesWayToItself,
        Self::FenceForbidsNothing,
        Self::AnswersBeforeItIsFenced,
        Self::AsksTheOldPrimaryAlone,
        Self::IsReassuredByAnybody,
        Self::TakesWhatTheSupersededSends,
    ];

    /// The first seed to look at: some need a rare coincidence, and are looked for from shortly before one
    /// that is known to have it.
    pub(crate) fn first_seed(self) -> u64 {
        SEEDS
            .into_iter()
            .find_map(|(broken, seed)| (broken == self).then_some(seed))
            .unwrap_or(0)
    }
}

/// Seeds that are known to have what is rare.
const SEEDS: [(Broken, u64); 3] = [
    (Broken::RejoinsTheSuperseded, 137_400),
    (Broken::FenceForbidsNothing, 2_500),
    (Broken::IsReassuredByAnybody, 81_100),
];

type Stepped = Result<(Role, Vec<Action>), Impossible>;

/// The role machine's step, with a rule broken if so asked.
pub(crate) fn step(role: &Role, me: &NodeName, event: Event, broken: Option<Broken>) -> Stepped {
    let Some(broken) = broken else {
        return role.step(me, event);
    };
    let unchanged = || Ok((role.clone(), vec![]));
    let serves = |epoch: &Epoch| {
        let standbys = vec![];
        let epoch = epoch.clone();
        Ok((Role::Primary { epoch, standbys }, vec![Action::Serve]))
    };
    match (broken, role, &event) {
        (Broken::RecordsAfterItActs, _, Event::Open(_)) => {
            let (next, mut actions) = role.step(me, event)?;
            actions.retain(|it| *it != Action::Record);
            Ok((next, actions))
        }
        (Broken::DoesNotFence, Role::Primary { .. }, Event::Heard(_))
        | (Broken::PromotesOnWhateverItHears, Role::Promoting { .. }, Event::Heard(_)) => {
            unchanged()
        }
        (Broken::ComparesNumbersOnly, _, Event::Heard(heard))
            if heard.number <= role.epoch().number =>
        {
            unchanged()
        }
        (Broken::TakesAnEqualEpochForHigher, Role::Primary { epoch, .. }, Event::Heard(heard))
            if heard == epoch =>
        {
            let (epoch, follows) = (epoch.clone(), false);
            Ok((
                Role::Fenced { epoch, follows },
                vec![Action::Fence, Action::Record],
            ))
        }
        (Broken::ProposesWithoutRecord, _, Event::Propose) => {
            let (next, _) = role.step(me, event)?;
            Ok((next, vec![]))
        }
        (Broken::ReturnsAtOnce, Role::Primary { epoch, .. }, Event::Started) => serves(epoch),
        (Broken::ForgetsStandbys, Role::Primary { .. }, Event::Joined(_)) => unchanged(),
        (
            Broken::ServesAloneDespiteStandbys,
            Role::Returning { epoch, .. },
            Event::Alone { .. },
        ) => serves(epoch),
        (
            Broken::ServesAloneAmongMany,
            Role::Returning { epoch, standbys },
            Event::Alone { .. },
        ) if standbys.is_empty() => serves(epoch),
        (Broken::RejoinsTheSuperseded, Role::Fenced { .. }, Event::Rejoined { primary, epoch }) => {
            Ok((
                Role::Standby {
                    epoch: epoch.clone(),
                    primary: primary.clone(),
                    proposed: None,
                },
                vec![Action::Record, Action::Follow],
            ))
        }
        (Broken::OpensASupersededEpoch, Role::Standby { .. }, Event::Open(epoch)) => Ok((
            Role::Promoting {
                epoch: epoch.clone(),
            },
            vec![Action::StopReceiving, Action::Record],
        )),
        (Broken::FencedServesWhenReassured, Role::Fenced { epoch, .. }, Event::Reassured) => {
            serves(epoch)
        }
        (
            Broken::GivesWayToItself,
            Role::Standby {
                epoch,
                primary,
                proposed: Some(proposed),
            },
            Event::Heard(heard),
        ) if heard == proposed => Role::Standby {
            epoch: epoch.clone(),
            primary: primary.clone(),
            proposed: None,
        }
        .step(me, event),
        _ => role.step(me, event),
    }
}
