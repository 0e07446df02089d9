//! A list with places that stay, up to a limit.

/// The list.
#[derive(Debug)]
pub(super) struct Slots<T> {
    places: Vec<Option<T>>,
    used: usize,
    max: usize,
}

impl<T> Slots<T> {
    /// For `max` entries. Room is made when they come.
    pub(super) const fn new(max: usize) -> Self {
        Self {
            places: Vec::new(),
            used: 0,
            max,
        }
    }

    pub(super) const fn is_full(&self) -> bool {
        self.used >= self.max
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Puts `entry` in and says where, or gives it back when all places are taken.
    pub(super) fn insert(&mut self, entry: T) -> Result<usize, T> {
        if self.is_full() {
            return Err(entry);
        }
        self.used = self.used.saturating_add(1);
        if let Some(free) = self.places.iter().position(Option::is_none)
            && let Some(place) = self.places.get_mut(free)
        {
            *place = Some(entry);
            return Ok(free);
        }
        self.places.push(Some(entry));
        Ok(self.places.len().saturating_sub(1))
    }

    pub(super) fn get_mut(&mut self, place: usize) -> Option<&mut T> {
        self.places.get_mut(place)?.as_mut()
    }

    pub(super) fn remove(&mut self, place: usize) -> Option<T> {
        let entry = self.places.get_mut(place)?.take()?;
        self.used = self.used.saturating_sub(1);
        Some(entry)
    }

    /// Entries with their places.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        let places = self.places.iter().enumerate();
        places.filter_map(|(place, entry)| Some((place, entry.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places.iter_mut().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again_and_the_limit_holds() {
        let mut slots = Slots::new(2);
        assert!(slots.is_empty());
        assert_eq!((slots.insert('a'), slots.insert('b')), (Ok(0), Ok(1)));
        assert!(slots.is_full());
        assert_eq!(slots.insert('c'), Err('c'));
        assert_eq!((slots.remove(0), slots.remove(0)), (Some('a'), None));
        assert_eq!(slots.insert('d'), Ok(0));
        let found: Vec<_> = slots.iter().map(|(place, entry)| (place, *entry)).collect();
        assert_eq!(found, [(0, 'd'), (1, 'b')]);
        assert_eq!(slots.get_mut(7), None);
    }
}
