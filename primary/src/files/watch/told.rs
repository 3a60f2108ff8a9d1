//! What one drain tells: moves, then places to look at. Pure.

use std::collections::{BTreeMap, BTreeSet};

use understudy_replication::files::RelPath;

use super::{FileHandle, Happening};

/// The happenings of one drain, duplicates merged.
///
/// A place is told of by the path that it has after all the moves, and moves come first. So whoever
/// follows the moves with what was told before has nothing of this drain to follow them with.
///
/// What came within the drain is not told as moved when it then moves (as when a file is written under
/// another name first): nobody knows it yet, and what is known under its first name is not it.
#[derive(Debug, Default)]
pub(super) struct Told {
    moves: Vec<Move>,
    /// Moves by the paths of now, which have yet to be told by the paths of then.
    moves_by_now: Vec<Move>,
    /// The ends of moves, by their paths of now, and whether to look at what is in them, if nobody
    /// follows a move there.
    ends: Vec<(RelPath, bool)>,
    places: BTreeMap<RelPath, Place>,
    placed: usize,
    /// Through which paths files were changed.
    through: BTreeMap<RelPath, BTreeSet<FileHandle>>,
    is_anywhere: bool,
}

/// A rename within the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) from: RelPath,
    pub(super) to: RelPath,
    pub(super) is_directory: bool,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    order: usize,
    is_deep: bool,
    is_new: bool,
}

impl Told {
    /// Notes that something happened to `path`, and to what it holds if `is_deep`.
    pub(super) fn at(&mut self, path: RelPath, is_deep: bool) {
        self.place(path).is_deep |= is_deep;
    }

    /// Notes that what is at `path` was not there before.
    pub(super) fn came(&mut self, path: RelPath, is_directory: bool) {
        let place = self.place(path);
        place.is_deep |= is_directory;
        place.is_new = true;
    }

    /// Notes that an entry of a directory came, left or was replaced: its own times are new. Those of
    /// the top are the machine's.
    pub(super) fn at_parent(&mut self, directory: Option<&RelPath>) {
        if let Some(directory) = directory {
            self.at(directory.clone(), false);
        }
    }

    /// Notes that a file was changed under this path of now.
    pub(super) fn through(&mut self, path: RelPath, file: FileHandle) {
        self.through.entry(path).or_default().insert(file);
    }

    /// Notes that a file that was changed has another name by now.
    pub(super) fn renamed(&mut self, from: &RelPath, to: &RelPath, file: &FileHandle) {
        let changed = self.through.get_mut(from);
        if changed.is_some_and(|files| files.remove(file)) {
            self.through(to.clone(), file.clone());
        }
    }

    /// Notes that anything may have happened.
    pub(super) fn anywhere(&mut self) {
        self.is_anywhere = true;
    }

    /// Notes a move, by the paths that all have before it and after it.
    pub(super) fn moved(&mut self, moved: Move) {
        let is_known = moved.is_possible() && !self.is_new(&moved.from);
        self.carry(&moved);
        if !is_known {
            self.at(moved.from, false);
            self.came(moved.to, moved.is_directory);
            return;
        }
        self.place_if_there(&moved.to, |place| place.is_new = false);
        self.ends.push((moved.from.clone(), false));
        self.ends.push((moved.to.clone(), moved.is_directory));
        self.moves.push(moved);
    }

    /// Notes a move, the directories of both ends being named by the paths that they have now, after
    /// moves that may have yet to be noted.
    pub(super) fn moved_by_now(&mut self, moved: Move) {
        let is_new = self.is_new(&moved.from);
        self.place_if_there(&moved.from, |place| place.is_new = false);
        if is_new {
            self.at(moved.from, false);
            self.came(moved.to, moved.is_directory);
            return;
        }
        self.place_if_there(&moved.to, |place| place.is_new = false);
        self.moves_by_now.push(moved);
    }

    /// Returns whether a directory was moved from one path to the other.
    pub(super) fn has_moved(&self, from: &RelPath, to: &RelPath) -> bool {
        let mut directories = self.moves.iter().filter(|moved| moved.is_directory);
        directories.any(|moved| moved.from == *from && moved.to == *to)
    }

    /// Returns all of it.
    pub(super) fn into_happenings(mut self) -> Vec<Happening> {
        self.tell_by_then();
        // The ends of a move are looked at anyway, but under the paths that they had then.
        let ends: BTreeSet<&RelPath> = self.moves.iter().flat_map(Move::ends).collect();
        let mut others = std::mem::take(&mut self.ends);
        others.retain(|(path, _)| !ends.contains(path));
        for (path, is_deep) in others {
            self.at(path, is_deep);
        }
        let mut places: Vec<(RelPath, Place)> = self.places.into_iter().collect();
        places.sort_by_key(|(_, place)| place.order);
        let moves = self.moves.into_iter().map(|moved| Happening::Moved {
            from: moved.from,
            to: moved.to,
            is_directory: moved.is_directory,
        });
        let places = places
            .into_iter()
            .map(|(path, place)| Happening::At(path, place.is_deep));
        let through = self.through.into_iter().flat_map(|(path, files)| {
            let files = files.into_iter();
            files.map(move |file| Happening::Through(path.clone(), file))
        });
        moves
            .chain(places)
            .chain(through)
            .chain(self.is_anywhere.then_some(Happening::Anywhere))
            .collect()
    }

    /// Notes the moves that are known by the paths of now, by those of then.
    fn tell_by_then(&mut self) {
        // Back from the last one, whose paths are right: each directory that was moved later is put
        // back to where it was.
        let mut later: Vec<Move> = Vec::new();
        let mut moves = Vec::with_capacity(self.moves_by_now.len());
        for moved in std::mem::take(&mut self.moves_by_now).into_iter().rev() {
            let then = |path: &RelPath| {
                later.iter().fold(path.clone(), |path, later| {
                    rebased(&path, &later.to, &later.from).unwrap_or(path)
                })
            };
            let then = Move {
                from: then(&moved.from),
                to: then(&moved.to),
                is_directory: moved.is_directory,
            };
            if !then.is_possible() {
                // Directories were exchanged, which cannot be undone one after the other.
                self.at(moved.from, moved.is_directory);
                self.at(moved.to, moved.is_directory);
                continue;
            }
            if then.is_directory {
                later.push(then.clone());
            }
            moves.push(then);
            self.ends.push((moved.from, false));
            self.ends.push((moved.to, moved.is_directory));
        }
        moves.reverse();
        // The kernel merges what it has told before, and so hides that it happened once more: between
        // places that saw several moves there may have been others.
        let mut seen = BTreeSet::new();
        let mut unsure = BTreeSet::new();
        for end in later.iter().flat_map(Move::ends) {
            if !seen.insert(end) {
                unsure.insert(end.clone());
            }
        }
        for path in unsure {
            self.at(path, true);
        }
        self.moves.extend(moves);
    }

    fn place(&mut self, path: RelPath) -> &mut Place {
        self.placed = self.placed.saturating_add(1);
        self.places.entry(path).or_insert(Place {
            order: self.placed,
            is_deep: false,
            is_new: false,
        })
    }

    fn place_if_there(&mut self, path: &RelPath, change: impl FnOnce(&mut Place)) {
        self.places.get_mut(path).map(change).unwrap_or_default();
    }

    fn is_new(&self, path: &RelPath) -> bool {
        let mut at = Some(path.clone());
        while let Some(path) = at {
            if self.places.get(&path).is_some_and(|place| place.is_new) {
                return true;
            }
            at = path.parent();
        }
        false
    }

    /// Lets what was noted follow a move.
    fn carry(&mut self, moved: &Move) {
        let Move { from, to, .. } = moved;
        let beneath = if moved.is_directory {
            for (path, _) in &mut self.ends {
                if let Some(now) = rebased(path, from, to) {
                    *path = now;
                }
            }
            beneath(&self.places, from)
        } else {
            Vec::new()
        };
        let now = beneath.into_iter().map(|path| {
            let now = rebased(&path, from, to);
            (path, now)
        });
        let now: Vec<_> = now.chain([(from.clone(), Some(to.clone()))]).collect();
        for (path, now) in now {
            let Some(place) = self.places.remove(&path) else {
                continue;
            };
            if path == *from && place.is_deep {
                // If the two were exchanged, there is something at either.
                self.at(path, true);
            }
            if let Some(now) = now {
                let there = self.place(now);
                there.is_deep |= place.is_deep;
                there.is_new = place.is_new;
            }
        }
    }
}

impl Move {
    fn ends(&self) -> [&RelPath; 2] {
        [&self.from, &self.to]
    }

    /// Nothing moves to where it is, or between a directory and what is in it.
    fn is_possible(&self) -> bool {
        let Self { from, to, .. } = self;
        from != to && !from.is_beneath(to) && !to.is_beneath(from)
    }
}

/// Returns the keys that lie beneath `path`.
pub(in crate::files) fn beneath<V>(map: &BTreeMap<RelPath, V>, path: &RelPath) -> Vec<RelPath> {
    map.range(path.clone()..)
        .skip_while(|(at, _)| *at == path)
        .take_while(|(at, _)| at.is_beneath(path))
        .map(|(at, _)| at.clone())
        .collect()
}

/// Returns where `path` is after `from`, in which it lies, has become `to`; `None` if it does not lie
/// there, or would be longer than a path can be.
pub(super) fn rebased(path: &RelPath, from: &RelPath, to: &RelPath) -> Option<RelPath> {
    let rest = path.as_bytes().strip_prefix(from.as_bytes())?;
    if rest.first() != Some(&b'/') {
        return None;
    }
    RelPath::new([to.as_bytes(), rest].concat()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use understudy_replication::files::PATH_BYTES_MAX;

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    fn moved(from: &str, to: &str) -> Move {
        Move {
            from: path(from),
            to: path(to),
            is_directory: true,
        }
    }

    fn told(told: Told) -> Vec<String> {
        let text = |happening| match happening {
            Happening::At(path, is_deep) => format!("{path}{}", if is_deep { "/" } else { "" }),
            Happening::Moved { from, to, .. } => format!("{from} -> {to}"),
            Happening::Through(path, _) => format!("through {path}"),
            Happening::Anywhere => "*".into(),
        };
        told.into_happenings().into_iter().map(text).collect()
    }

    #[test]
    fn what_is_told_twice_is_told_once_where_it_came_first() {
        let mut all = Told::default();
        all.at(path("b"), false);
        all.anywhere();
        all.at(path("a"), false);
        all.at(path("b"), true);
        all.anywhere();
        assert_eq!(told(all), ["b/", "a", "*"]);
    }

    #[test]
    fn a_place_that_moves_is_told_of_where_it_is_then() {
        let mut all = Told::default();
        all.at(path("a/f"), false);
        all.at(path("a"), false);
        all.moved(moved("a/x", "a/y"));
        all.moved(moved("a", "b"));
        all.at(path("a/f"), false);
        assert_eq!(
            told(all),
            ["a/x -> a/y", "a -> b", "b/f", "b", "a/f", "b/x", "b/y/"]
        );
    }

    #[test]
    fn moves_told_by_where_directories_are_now_are_told_as_they_were_made() {
        let mut all = Told::default();
        all.moved_by_now(moved("c/x", "c/y"));
        all.moved_by_now(moved("a", "b"));
        all.moved_by_now(moved("b", "c"));
        assert_eq!(
            told(all),
            ["a/x -> a/y", "a -> b", "b -> c", "b/", "c/x", "c/y/"]
        );
    }

    #[test]
    fn what_has_just_come_is_not_told_as_moved() {
        for note in [Told::moved, Told::moved_by_now] {
            let mut all = Told::default();
            all.came(path("new"), true);
            note(&mut all, moved("new", "newer"));
            note(&mut all, moved("newer/x", "y"));
            // Its first name is free for what was known before.
            note(&mut all, moved("old", "new"));
            note(&mut all, moved("new", "newest"));
            let told = told(all);
            assert_eq!(told.get(..2).unwrap(), ["old -> new", "new -> newest"]);
            for deep in ["newer/", "y/"] {
                assert!(told.iter().any(|told| told == deep), "{told:?}");
            }
        }
    }

    #[test]
    fn what_is_new_in_a_directory_is_so_after_that_has_moved() {
        let mut all = Told::default();
        all.came(path("a/new"), true);
        all.moved(moved("a", "b"));
        all.moved(moved("b/new", "c"));
        assert_eq!(told(all), ["a -> b", "b/new/", "c/"]);
    }

    #[test]
    fn a_path_follows_only_what_it_lies_in() {
        let moved = |at: &str| rebased(&path(at), &path("a"), &path("b/c"));
        assert_eq!(moved("a/x/y"), Some(path("b/c/x/y")));
        assert_eq!(moved("a"), None);
        assert_eq!(moved("ab/x"), None);
        let long = "l".repeat(199) + "/";
        let long = long.repeat(PATH_BYTES_MAX / 200) + &"l".repeat(PATH_BYTES_MAX % 200);
        let long = RelPath::new(&long.as_bytes()[..PATH_BYTES_MAX - 2]).unwrap();
        assert_eq!(
            rebased(
                &RelPath::child(Some(&path("a")), b"x").unwrap(),
                &path("a"),
                &long
            ),
            Some(RelPath::new([long.as_bytes(), b"/x"].concat()).unwrap())
        );
        assert_eq!(rebased(&path("a/xy"), &path("a"), &long), None);
    }

    /// A tree: of each file and directory, its number and path.
    type Model = BTreeMap<RelPath, usize>;

    #[derive(Clone, Debug)]
    enum Step {
        Touch(usize),
        Move(usize, usize, u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_usize..40).prop_map(Step::Touch),
            (0_usize..40, 0_usize..40, b'a'..b'e')
                .prop_map(|(of, to, name)| Step::Move(of, to, name)),
        ]
    }

    /// Directories `a`, `a/a`, `b`, … with a file `f` in each.
    fn model() -> Model {
        let mut paths = Vec::new();
        for name in ["a", "b", "a/a", "a/b", "b/a", "a/a/a"] {
            paths.push(path(name));
            paths.push(path(&format!("{name}/f")));
        }
        paths.into_iter().zip(0..).collect()
    }

    fn is_directory(path: &RelPath) -> bool {
        path.name() != b"f"
    }

    fn apply(model: &mut Model, moved: &Move) {
        for at in beneath(model, &moved.from) {
            let number = model.remove(&at).unwrap();
            let to = rebased(&at, &moved.from, &moved.to).unwrap();
            model.insert(to, number);
        }
        if let Some(number) = model.remove(&moved.from) {
            model.insert(moved.to.clone(), number);
        }
    }

    proptest! {
        /// Whoever follows the moves, and then looks at the places, has missed nothing, whether paths
        /// are told as they were (inotify) or as they are (fanotify).
        #[test]
        fn nothing_is_missed(steps in prop::collection::vec(step(), 1..12)) {
            let before = model();
            let mut now = before.clone();
            let mut as_they_were = Told::default();
            let (mut touched, mut moves, mut ids) = (Vec::new(), Vec::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Touch(of) => {
                        let files: Vec<_> = now.iter().filter(|(at, _)| !is_directory(at)).collect();
                        let (at, number) = files[of % files.len()];
                        as_they_were.at(at.clone(), false);
                        touched.push(*number);
                    }
                    Step::Move(of, to, name) => {
                        let directories: Vec<_> = now.keys().filter(|at| is_directory(at)).collect();
                        let from = directories[of % directories.len()].clone();
                        let parent = directories.get(to).copied();
                        let to = RelPath::child(parent, &[name]).unwrap();
                        let is_inside = to == from || to.is_beneath(&from);
                        if is_inside || now.contains_key(&to) { continue; }
                        let parents = [from.parent(), parent.cloned()];
                        ids.push(parents.map(|parent| parent.map(|parent| now[&parent])));
                        let moved = Move { from, to, is_directory: true };
                        apply(&mut now, &moved);
                        as_they_were.moved(moved.clone());
                        moves.push(moved);
                    }
                }
            }
            let place_of = |number: usize| now.iter().find(|(_, at)| **at == number).unwrap().0;
            let hence = |parent: Option<usize>, path: &RelPath| {
                RelPath::child(parent.map(place_of), path.name()).unwrap()
            };
            let mut as_they_are = Told::default();
            for number in &touched {
                as_they_are.at(place_of(*number).clone(), false);
            }
            let told_moves = moves.iter().zip(&ids);
            let told_moves = told_moves.map(|(moved, [from, to])| Move {
                from: hence(*from, &moved.from), to: hence(*to, &moved.to), is_directory: true,
            });
            for moved in told_moves {
                as_they_are.moved_by_now(moved);
            }
            for told in [as_they_were, as_they_are] {
                let mut followed = before.clone();
                let mut looked_at = Vec::new();
                let mut followed_moves = Vec::new();
                for happening in told.into_happenings() {
                    match happening {
                        Happening::Moved { from, to, is_directory } => {
                            let moved = Move { from, to, is_directory };
                            apply(&mut followed, &moved);
                            followed_moves.push(moved);
                        }
                        Happening::At(path, _) => looked_at.push(path),
                        Happening::Anywhere | Happening::Through(..) => unreachable!(),
                    }
                }
                prop_assert_eq!(&followed_moves, &moves);
                prop_assert_eq!(&followed, &now);
                for number in &touched {
                    prop_assert!(looked_at.contains(place_of(*number)), "{:?}", looked_at);
                }
            }
        }
    }
}
