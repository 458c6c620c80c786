//! Looks at the interfaces of the system, for rings on all of them.
//!
//! The kernel is asked for the whole list when it has announced a change of any interface, and now and
//! then in case an announcement was missed. Of what it announces, only deletions are read: another
//! interface of the same name and index may be there by the time of the look. A look at a thousand
//! interfaces takes milliseconds, so the next one waits for ten times as long as the last took, a second at
//! most.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nameindex};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use packet::frame::LinkType;

use super::names::InterfaceNames;
use super::patterns::Patterns;
use super::places::{Place, PlaceMap, Places};
use crate::afpacket::{Interface, OpenError, Promiscuity};
use crate::event::InterfaceChange;

/// The longest time between two looks, with announcements and without.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY_UNTOLD: Duration = Duration::from_millis(100);
/// The next look waits for so many times as long as the last one took, within limits.
const REST: u32 = 10;
const LEAST_REST: Duration = Duration::from_millis(5);
const MOST_REST: Duration = Duration::from_secs(1);
/// Interfaces whose MTU is asked for at a look: each takes a few system calls.
const MTUS_PER_LOOK: usize = 16;
/// Frames of an interface that is gone are still known by its name for so long: a worker that is held up
/// reads them late.
const REMEMBERED: Duration = Duration::from_secs(30);
const MOST_REMEMBERED: usize = 4096;
/// Announcements that are taken from the socket at once.
const MOST_NEWS: usize = 256;

/// Keeps names and places of the interfaces that match the patterns up to date.
#[derive(Debug)]
pub struct Lookout {
    patterns: Patterns,
    names: Arc<InterfaceNames>,
    places: Arc<Places>,
    /// Asks for all frames of those that are wanted; `None`: those to this host will do.
    promiscuity: Option<Promiscuity>,
    /// Indexes that were asked, and how often.
    asked: BTreeMap<u32, u32>,
    /// Those of them that may be other interfaces by now, which have to be asked again.
    unsure: BTreeSet<u32>,
    /// By index.
    present: BTreeMap<u32, Present>,
    /// Those that went lately: their last frames may lie in the rings.
    departed: VecDeque<Departed>,
    /// Where the kernel announces changes of interfaces.
    announcements: Option<OwnedFd>,
    is_announced: bool,
    /// Indexes of interfaces that were deleted since the last look, as far as that was announced.
    deleted: BTreeSet<u32>,
    looked: Option<Instant>,
    not_before: Option<Instant>,
    /// The last interface whose MTU was asked for.
    measured: u32,
    is_limit_said: bool,
}

/// An interface that was there at the last look.
#[derive(Clone, Debug)]
struct Present {
    name: String,
    place: Place,
    is_loopback: bool,
    mtu: u32,
    mac: Option<[u8; 6]>,
    /// Its link was down; of an interface that comes so, only the rest is said.
    is_down: bool,
}

/// An interface that is not there any more.
#[derive(Clone, Copy, Debug)]
struct Departed {
    at: Instant,
    index: u32,
    place: Place,
}

/// What one list of the system says of an interface, by its name.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    is_up: bool,
    mac: Option<[u8; 6]>,
}

impl Lookout {
    /// Looks at the interfaces that there are, without a word about them. `names` has the ids of the
    /// patterns, [`PlaceMap::ETHERNET`] and [`PlaceMap::RAW`].
    ///
    /// # Errors
    /// The system does not list its interfaces.
    pub fn new(
        patterns: Patterns,
        names: Arc<InterfaceNames>,
        places: Arc<Places>,
        promiscuity: Option<Promiscuity>,
    ) -> io::Result<Self> {
        // Listens first: what comes after the first look is announced.
        let announcements = listen().inspect_err(|error| {
            tracing::warn!(%error, "the kernel does not announce interfaces; they are looked at often");
        });
        let mut lookout = Self {
            patterns,
            names,
            places,
            promiscuity,
            asked: BTreeMap::new(),
            unsure: BTreeSet::new(),
            present: BTreeMap::new(),
            departed: VecDeque::new(),
            announcements: announcements.ok(),
            is_announced: false,
            deleted: BTreeSet::new(),
            looked: None,
            not_before: None,
            measured: 0,
            is_limit_said: false,
        };
        lookout.look(&mut |_, _| {})?;
        Ok(lookout)
    }

    /// Names of the interfaces that are captured now.
    pub fn captured(&self) -> impl Iterator<Item = &str> {
        self.present.values().filter(|one| one.is_wanted()).map(|one| one.name.as_str())
    }

    /// Waits for so long, or until an interface changed.
    pub fn wait(&mut self, timeout: Duration) {
        let Some(announcements) = &self.announcements else { return thread::sleep(timeout) };
        if self.is_announced {
            // What else is announced until the next look is part of it.
            let rest = self.not_before.map(|at| at.saturating_duration_since(Instant::now()));
            return thread::sleep(rest.unwrap_or_default().min(timeout));
        }
        let millis = PollTimeout::try_from(timeout.max(Duration::from_millis(1)));
        let mut fds = [PollFd::new(announcements.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, millis.unwrap_or(PollTimeout::MAX)) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => {
                self.hear();
                self.is_announced = true;
            }
            Err(_) => thread::sleep(timeout),
        }
    }

    /// Looks at the interfaces if it is time to; `say` is told what changed.
    pub fn look_if_due(&mut self, now: Instant, say: &mut impl FnMut(&str, InterfaceChange)) {
        let every = if self.announcements.is_some() { LOOK_EVERY } else { LOOK_EVERY_UNTOLD };
        let is_old = self.looked.is_none_or(|at| now.duration_since(at) >= every);
        let may_look = self.not_before.is_none_or(|at| now >= at);
        if (self.is_announced || is_old) && may_look {
            self.is_announced = false;
            // Without a list everything stays as it is until the next look.
            if let Err(error) = self.look(say) {
                tracing::warn!(%error, "cannot list the interfaces");
            }
        }
    }

    fn look(&mut self, say: &mut impl FnMut(&str, InterfaceChange)) -> io::Result<()> {
        let began = Instant::now();
        let is_first = self.looked.replace(began).is_none();
        // What was deleted before this moment is not in the list, or is another one there.
        self.hear();
        let list = if_nameindex()?;
        let list: BTreeMap<u32, String> = list
            .iter()
            .map(|one| (one.index(), one.name().to_string_lossy().into_owned()))
            .collect();
        let has_changed = self.compare(list, &states(), is_first, say) || is_first;
        if has_changed || !self.unsure.is_empty() {
            self.be_promiscuous();
        }
        if has_changed {
            self.publish();
        }
        self.ask_for_mtus(say);
        self.not_before = Some(Instant::now() + rest_after(began.elapsed()));
        Ok(())
    }

    /// Takes in what there is now; says whether anything came or went.
    fn compare(
        &mut self,
        list: BTreeMap<u32, String>,
        states: &HashMap<String, State>,
        is_first: bool,
        say: &mut impl FnMut(&str, InterfaceChange),
    ) -> bool {
        let mut has_changed = self.forget(&list, say);
        for (index, name) in list {
            let state = states.get(&name).copied();
            match self.present.get_mut(&index) {
                // Without an answer of the system, nothing has changed.
                Some(present) => state.into_iter().for_each(|state| present.follow(state, say)),
                None => {
                    // One that is gone already is met at no further look.
                    let state = state.unwrap_or_default();
                    let Some(found) = self.judge(index, &name, state) else { continue };
                    has_changed = true;
                    if found.is_wanted() && !is_first {
                        say(&name, found.arrival);
                    }
                    self.present.insert(index, found.present);
                }
            }
        }
        has_changed
    }

    /// Takes what was announced.
    fn hear(&mut self) {
        let Some(announcements) = &self.announcements else { return };
        if drain(announcements, &mut self.deleted) == Heard::NotAll {
            self.unsure.extend(self.asked.keys());
        }
    }

    /// Asks those that are wanted for all their frames, and no others. Of those that are deleted, the
    /// kernel forgets it by itself.
    fn be_promiscuous(&mut self) {
        let Some(promiscuity) = &self.promiscuity else { return };
        let is_wanted = |one: &Present| one.is_wanted() && !one.is_loopback;
        let wanted = self.present.iter().filter(|(_, one)| is_wanted(one));
        let wanted: BTreeSet<u32> = wanted.map(|(index, _)| *index).collect();
        self.asked.retain(|index, times| {
            if wanted.contains(index) {
                return true;
            }
            for _ in 0..*times {
                if let Err(error) = promiscuity.end(*index) {
                    tracing::warn!(index, %error, "cannot give up the frames of the interface to others");
                }
            }
            false
        });
        let unsure = std::mem::take(&mut self.unsure);
        for index in wanted {
            if self.asked.contains_key(&index) && !unsure.contains(&index) {
                continue;
            }
            match promiscuity.begin(index) {
                Ok(()) => *self.asked.entry(index).or_default() += 1,
                // One that was deleted meanwhile has nothing to show.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => {
                    tracing::warn!(index, %error, "cannot see the frames of the interface to others");
                }
            }
        }
    }

    /// Those that are gone, or go by another name: that is judged anew. Says whether there are any.
    fn forget(
        &mut self,
        list: &BTreeMap<u32, String>,
        say: &mut impl FnMut(&str, InterfaceChange),
    ) -> bool {
        let (before, at) = (self.present.len(), Instant::now());
        let deleted = std::mem::take(&mut self.deleted);
        self.unsure.extend(deleted.iter().filter(|index| self.asked.contains_key(index)));
        let is_over = |one: &Departed| at.duration_since(one.at) > REMEMBERED;
        while self.departed.front().is_some_and(is_over) {
            self.departed.pop_front();
        }
        self.present.retain(|index, one| {
            let now = list.get(index);
            let is_other = deleted.contains(index);
            let is_same = now == Some(&one.name) && !is_other;
            if !is_same && one.is_wanted() {
                let is_renamed = now.is_some() && !is_other;
                let change =
                    if is_renamed { InterfaceChange::Renamed } else { InterfaceChange::Gone };
                say(&one.name, change);
            }
            if now.is_none() {
                self.departed.push_back(Departed { at, index: *index, place: one.place });
            }
            is_same
        });
        let too_many = self.departed.len().saturating_sub(MOST_REMEMBERED);
        self.departed.drain(..too_many);
        self.present.len() != before
    }

    /// What becomes of the frames of an interface that was not there at the last look; `None` if it is
    /// not there any more.
    fn judge(&mut self, index: u32, name: &str, state: State) -> Option<Arrived> {
        let mut arrival = InterfaceChange::New;
        let (mut place, mut is_loopback, mut mtu) = (Place::NotWanted, false, 0);
        if self.patterns.matches(name) {
            match Interface::find(name) {
                Ok(found) if found.index == index => {
                    if self.names.id_of(name, found.link).is_some() {
                        arrival = InterfaceChange::Back;
                    }
                    place = self.place(name, found.link);
                    (is_loopback, mtu) = (found.is_loopback, found.mtu);
                }
                Err(OpenError::UnsupportedHardware { hardware, .. }) => tracing::info!(
                    name,
                    hardware,
                    "interface matches, but frames of its kind are not analysed; it is left out"
                ),
                Ok(_) | Err(_) => return None,
            }
        }
        let State { is_up, mac } = state;
        let name = name.to_owned();
        let present = Present { name, place, is_loopback, mtu, mac, is_down: !is_up };
        Some(Arrived { present, arrival })
    }

    fn place(&mut self, name: &str, link: LinkType) -> Place {
        if let Some(id) = self.names.add(name, link) {
            return Place::Id(id, link);
        }
        if !std::mem::replace(&mut self.is_limit_said, true) {
            tracing::warn!(
                name,
                names = self.names.load().len(),
                "there were too many interfaces since the start: frames of this and of further ones go \
                 by the name of the patterns"
            );
        }
        Place::Unnamed
    }

    fn publish(&self) {
        // An index that was given to another interface belongs to that one.
        let mut places: BTreeMap<u32, Place> =
            self.departed.iter().map(|one| (one.index, one.place)).collect();
        places.extend(self.present.iter().map(|(index, one)| (*index, one.place)));
        let unwanted = self.present.iter().filter(|(_, one)| !one.is_wanted());
        let unwanted = unwanted.map(|(index, _)| *index).collect();
        self.places.store(PlaceMap::new(places, unwanted));
    }

    /// Asks some of the interfaces for their MTU, in turn.
    fn ask_for_mtus(&mut self, say: &mut impl FnMut(&str, InterfaceChange)) {
        let wanted = |(_, one): &(&u32, &mut Present)| one.is_wanted();
        let (mut count, mut last) = (0, None);
        for (index, one) in self.present.range_mut(self.measured + 1..).filter(wanted) {
            if count == MTUS_PER_LOOK {
                break;
            }
            (count, last) = (count + 1, Some(*index));
            if let Ok(found) = Interface::find(&one.name)
                && found.index == *index
                && std::mem::replace(&mut one.mtu, found.mtu) != found.mtu
            {
                say(&one.name, InterfaceChange::MtuChanged);
            }
        }
        // The last of them came: begin again with the first.
        self.measured = last.filter(|_| count == MTUS_PER_LOOK).unwrap_or(0);
    }
}

/// An interface that was not there at the last look.
struct Arrived {
    present: Present,
    arrival: InterfaceChange,
}

impl Arrived {
    fn is_wanted(&self) -> bool {
        self.present.is_wanted()
    }
}

impl Present {
    fn is_wanted(&self) -> bool {
        self.place != Place::NotWanted
    }

    /// Says what changed since the last look.
    fn follow(&mut self, state: State, say: &mut impl FnMut(&str, InterfaceChange)) {
        let State { is_up, mac } = state;
        let has_other_mac = mac != self.mac && mac.is_some() && self.mac.is_some();
        self.mac = mac.or(self.mac);
        if !self.is_wanted() {
            return;
        }
        if has_other_mac {
            say(&self.name, InterfaceChange::MacChanged);
        }
        if is_up == self.is_down {
            self.is_down = !is_up;
            let change = if is_up { InterfaceChange::LinkUp } else { InterfaceChange::LinkDown };
            say(&self.name, change);
        }
    }
}

/// How long the next look waits after one that took so long.
fn rest_after(look: Duration) -> Duration {
    look.saturating_mul(REST).clamp(LEAST_REST, MOST_REST)
}

/// Flags and hardware addresses of all interfaces, by name.
fn states() -> HashMap<String, State> {
    let mut states: HashMap<String, State> = HashMap::new();
    for one in getifaddrs().into_iter().flatten() {
        let state = states.entry(one.interface_name).or_default();
        state.is_up = one.flags.contains(InterfaceFlags::IFF_UP);
        if let Some(link) = one.address.as_ref().and_then(|address| address.as_link_addr()) {
            state.mac = link.addr();
        }
    }
    states
}

/// A socket on which the kernel announces changes of interfaces. Needs no privilege.
/// Source: rtnetlink(7), `RTMGRP_LINK`.
fn listen() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    // A small constant.
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, libc::RTMGRP_LINK as u32))?;
    Ok(socket)
}

/// Did all that was announced arrive?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    All,
    /// There was too much at once.
    NotAll,
}

/// Takes what was announced, and notes which interfaces were deleted. An overflow is an announcement
/// too.
fn drain(announcements: &OwnedFd, deleted: &mut BTreeSet<u32>) -> Heard {
    let mut heard = Heard::All;
    // The rest of a message is cut off.
    let mut buffer = [0; 64];
    for _ in 0..MOST_NEWS {
        match recv(announcements.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => deleted.extend(deletion(&buffer[..length.min(buffer.len())])),
            Err(Errno::ENOBUFS) => heard = Heard::NotAll,
            Err(_) => break,
        }
    }
    heard
}

/// The index of the interface that this message says was deleted, if it does.
/// Source: Linux `include/uapi/linux/netlink.h`, `struct nlmsghdr`; `rtnetlink.h`, `struct ifinfomsg`.
fn deletion(message: &[u8]) -> Option<u32> {
    const TYPE: usize = 4;
    const FAMILY: usize = 16;
    const INDEX: usize = 20;
    let kind = u16::from_ne_bytes(*message.get(TYPE..)?.first_chunk()?);
    let index = u32::from_ne_bytes(*message.get(INDEX..)?.first_chunk()?);
    // A bridge says so of a port that leaves it.
    let is_interface = i32::from(message[FAMILY]) == libc::AF_UNSPEC;
    (kind == libc::RTM_DELLINK && is_interface).then_some(index)
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::setsockopt;
    use nix::sys::socket::sockopt::RcvBuf;
    use perf::lab::{Lab, Namespace};
    use wire::message::MAX_INTERFACES;

    use super::*;

    /// A lookout for all interfaces but two, with so many names given already, and what it tells.
    fn lookout(given: usize) -> (Lookout, Arc<InterfaceNames>, Arc<Places>) {
        let given = (0..given).map(|number| (format!("before{number}"), LinkType::ETHERNET));
        let (names, places) = (Arc::new(InterfaceNames::new(given)), Arc::new(Places::default()));
        let excluded = ["lo".to_owned(), "x*".to_owned()];
        let patterns = Patterns::new(&["*".to_owned()], &excluded).unwrap();
        let promiscuity = Some(Promiscuity::new().unwrap());
        let lookout =
            Lookout::new(patterns, Arc::clone(&names), Arc::clone(&places), promiscuity).unwrap();
        (lookout, names, places)
    }

    fn index_of(name: &str) -> u32 {
        Interface::find(name).unwrap().index
    }

    fn name_of(index: u32) -> String {
        let names = if_nameindex().unwrap();
        let name = names.iter().find(|one| one.index() == index).unwrap().name();
        name.to_str().unwrap().to_owned()
    }

    #[test]
    fn interfaces_beyond_the_limit_of_names_go_by_the_name_of_the_patterns() {
        let Some(lab) = Lab::new() else { return };
        lab.sensor().within(|| {
            let (_, names, places) = lookout(MAX_INTERFACES);
            assert_eq!(names.over_limit(), 1);
            let map = places.load();
            assert_eq!(map.id_of(index_of("s0"), LinkType::ETHERNET), Some(PlaceMap::ETHERNET));
            assert_eq!(map.id_of(index_of("lo"), LinkType::ETHERNET), None);
            assert_eq!(map.unwanted(), [index_of("lo")]);
        });
    }

    #[test]
    fn an_index_that_is_given_to_another_interface_belongs_to_that_one() {
        let Some(lab) = Lab::new() else { return };
        let host = lab.sensor();
        host.within(|| {
            let (mut lookout, names, places) = lookout(2);
            let mut said = Vec::new();
            let mut look = |lookout: &mut Lookout| {
                let mut told = |name: &str, change| said.push((name.to_owned(), change));
                lookout.look(&mut told).unwrap();
                std::mem::take(&mut said)
            };
            host.ip("link add d0 index 777 type veth peer name far");
            lookout.wait(Duration::from_secs(5));
            assert!(lookout.is_announced, "the kernel says so");
            let new = |name: &str| (name.to_owned(), InterfaceChange::New);
            let mut told = look(&mut lookout);
            told.sort_by(|one, other| one.0.cmp(&other.0));
            assert_eq!(told, [new("d0"), new("far")]);
            let d0 = names.id_of("d0", LinkType::ETHERNET);
            assert!(d0.is_some());
            assert_eq!(places.load().id_of(777, LinkType::ETHERNET), d0);
            host.ip("link del d0");
            assert_eq!(look(&mut lookout).len(), 2, "both are gone");
            // Its last frames may be read now.
            assert_eq!(places.load().id_of(777, LinkType::ETHERNET), d0);
            host.ip("link add e0 index 777 type veth peer name far");
            let told = look(&mut lookout);
            assert!(told.contains(&new("e0")));
            assert!(told.contains(&("far".to_owned(), InterfaceChange::Back)));
            let e0 = names.id_of("e0", LinkType::ETHERNET);
            assert_ne!(e0, d0);
            assert_eq!(places.load().id_of(777, LinkType::ETHERNET), e0);
        });
    }

    /// How many have asked an interface for all frames that it sees.
    fn promiscuity(host: &Namespace, name: &str) -> u64 {
        let said = host.ip(&format!("-d -j link show {name}")).stdout;
        let said: serde_json::Value = serde_json::from_slice(&said).unwrap();
        said[0]["promiscuity"].as_u64().unwrap()
    }

    /// What a look tells.
    fn told(lookout: &mut Lookout) -> Vec<(String, InterfaceChange)> {
        let mut said = Vec::new();
        lookout.look(&mut |name: &str, change| said.push((name.to_owned(), change))).unwrap();
        said
    }

    #[test]
    fn one_that_was_deleted_and_made_again_between_two_looks_is_said_and_asked_for_all_frames() {
        let Some(lab) = Lab::new() else { return };
        let host = lab.sensor();
        host.within(|| {
            let (mut lookout, ..) = lookout(2);
            host.ip("link add d0 index 777 type veth peer name xpeer");
            told(&mut lookout);
            assert_eq!((promiscuity(host, "d0"), promiscuity(host, "xpeer")), (1, 0));
            host.ip("link del d0");
            host.ip("link add d0 index 777 type veth peer name xpeer");
            let expected = [InterfaceChange::Gone, InterfaceChange::Back];
            assert_eq!(told(&mut lookout), expected.map(|change| ("d0".to_owned(), change)));
            assert_eq!(promiscuity(host, "d0"), 1);
            assert_eq!(told(&mut lookout), []);
        });
    }

    #[test]
    fn one_that_is_renamed_is_asked_for_all_frames_as_long_as_it_is_wanted() {
        let Some(lab) = Lab::new() else { return };
        let host = lab.sensor();
        host.within(|| {
            let (mut lookout, _, places) = lookout(2);
            host.ip("link add d0 type veth peer name xpeer");
            let index = index_of("d0");
            for (name, count) in [("d1", 1), ("x1", 0), ("d2", 1)] {
                told(&mut lookout);
                host.ip(&format!("link set dev {} name {name}", name_of(index)));
                told(&mut lookout);
                assert_eq!(promiscuity(host, name), count, "{name}");
                assert_eq!(places.load().unwanted().contains(&index), count == 0, "{name}");
            }
            drop(lookout);
            assert_eq!(promiscuity(host, "d2"), 0);
        });
    }

    /// More is announced than there is room for.
    fn overrun(lookout: &Lookout, host: &Namespace) {
        setsockopt(lookout.announcements.as_ref().unwrap(), RcvBuf, &0).unwrap();
        for mtu in 1400..1420 {
            host.ip(&format!("link set lo mtu {mtu}"));
        }
    }

    #[test]
    fn one_whose_deletion_was_not_heard_of_is_asked_for_all_frames_as_long_as_it_is_wanted() {
        let Some(lab) = Lab::new() else { return };
        let host = lab.sensor();
        host.within(|| {
            let (mut lookout, ..) = lookout(2);
            host.ip("link add d0 index 777 type veth peer name xpeer");
            told(&mut lookout);
            for is_made_again in [true, false, true] {
                overrun(&lookout, host);
                if is_made_again {
                    host.ip("link del d0");
                    host.ip("link add d0 index 777 type veth peer name xpeer");
                }
                told(&mut lookout);
                assert!(promiscuity(host, "d0") > 0, "{is_made_again}");
            }
            host.ip("link set dev d0 name x0");
            told(&mut lookout);
            assert_eq!(promiscuity(host, "x0"), 0);
        });
    }

    #[test]
    fn a_port_that_leaves_its_bridge_is_not_deleted() {
        let Some(lab) = Lab::new() else { return };
        let host = lab.sensor();
        host.within(|| {
            host.ip("link add xbr type bridge");
            host.ip("link add d0 type veth peer name xpeer");
            host.ip("link set d0 master xbr");
            let (mut lookout, ..) = lookout(2);
            host.ip("link set d0 nomaster");
            assert_eq!(told(&mut lookout), []);
            host.ip("link del d0");
            assert_eq!(told(&mut lookout), [("d0".to_owned(), InterfaceChange::Gone)]);
        });
    }

    #[test]
    fn what_the_system_does_not_say_of_an_interface_has_not_changed() {
        let Some(lab) = Lab::new() else { return };
        lab.sensor().within(|| {
            let (mut lookout, ..) = lookout(2);
            let list = |lookout: &Lookout| -> BTreeMap<u32, String> {
                let present = lookout.present.iter();
                present.map(|(index, one)| (*index, one.name.clone())).collect()
            };
            let mut said = Vec::new();
            let mut say = |name: &str, change| said.push((name.to_owned(), change));
            let present = list(&lookout);
            assert!(!lookout.compare(present, &HashMap::new(), false, &mut say));
            let present = list(&lookout);
            assert!(!lookout.compare(present, &states(), false, &mut say));
            assert_eq!(said, []);
        });
    }

    #[test]
    fn a_look_rests_for_ten_times_as_long_as_the_last_took_and_a_second_at_most() {
        // The last of them is what six thousand interfaces take.
        for (look, rest) in [(0, 5), (1, 10), (80, 800), (144, 1000)] {
            assert_eq!(rest_after(Duration::from_millis(look)), Duration::from_millis(rest));
        }
    }

    #[test]
    fn a_message_that_is_cut_short_deletes_nothing() {
        let mut message = [0_u8; 32];
        message[4..6].copy_from_slice(&libc::RTM_DELLINK.to_ne_bytes());
        message[20..24].copy_from_slice(&7_u32.to_ne_bytes());
        assert_eq!(deletion(&message), Some(7));
        for length in 0..24 {
            assert_eq!(deletion(&message[..length]), None);
        }
    }
}
