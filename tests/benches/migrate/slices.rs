//! What a program has said of its slices of time, and what is read off them.

/// What was done in a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice {
    /// Pages checked.
    pub(crate) pages: f64,
    /// Milliseconds of the longest time from the end of one to the end of the next.
    pub(crate) longest_ms: f64,
}

/// All slices of a run.
#[derive(Clone, Debug)]
pub(crate) struct Slices {
    all: Vec<Slice>,
    /// Milliseconds of each.
    pub(crate) ms: f64,
    /// Those before the guest was to become smaller, from the first on.
    before: usize,
    /// The first in which it was to be smaller than it was, and the first in which it was as small.
    began: usize,
    ended: usize,
}

/// What was done in some time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Throughput {
    /// Pages in a slice: the median.
    pub(crate) median: f64,
    /// The least of which no more than one slice in a hundred is below.
    pub(crate) worst: f64,
    /// Milliseconds of the longest pause: from the end of one page's check to the end of the next.
    pub(crate) longest_ms: f64,
}

impl Slices {
    /// Reads them off the guest's console.
    ///
    /// # Errors
    /// What is missing there.
    pub(crate) fn parse(console: &str) -> Result<Self, String> {
        let mut slices = None;
        for line in console.lines() {
            let Some((_, said)) = line.split_once("]: ") else {
                continue;
            };
            if let Some(head) = said.strip_prefix("slices of ") {
                slices = Some(Self::head(head).ok_or_else(|| format!("not understood: {line:?}"))?);
            } else if let (Some(rest), Some(slices)) = (said.strip_prefix("slice "), &mut slices) {
                slices
                    .add(rest)
                    .ok_or_else(|| format!("not understood: {line:?}"))?;
            }
        }
        let slices = slices.ok_or_else(|| format!("the program did not report its slices: {console}"))?;
        if slices.before == 0 || slices.all.len() <= slices.ended {
            return Err(format!(
                "slices are missing: {} of {}",
                slices.all.len(),
                slices.ended
            ));
        }
        Ok(slices)
    }

    /// `5000000 ns: 200 before, 214 to 398 while it became smaller`.
    fn head(text: &str) -> Option<Self> {
        let mut numbers = text
            .split(' ')
            .filter_map(|word| word.trim_end_matches(',').parse::<usize>().ok());
        let (ns, before) = (numbers.next()?, numbers.next()?);
        let (began, ended) = (numbers.next()?, numbers.next()?);
        Some(Self {
            all: Vec::new(),
            ms: ns as f64 / 1e6,
            before,
            began,
            ended,
        })
    }

    /// `24: 8012/35 8100/40`: the number of the first, then pages and microseconds of each.
    fn add(&mut self, text: &str) -> Option<()> {
        let (first, slices) = text.split_once(": ")?;
        if first.parse::<usize>().ok()? != self.all.len() {
            return None;
        }
        for slice in slices.split(' ') {
            let (pages, us) = slice.split_once('/')?;
            self.all.push(Slice {
                pages: pages.parse().ok()?,
                longest_ms: us.parse::<f64>().ok()? / 1e3,
            });
        }
        Some(())
    }

    /// Before the guest was to become smaller.
    pub(crate) fn before(&self) -> Throughput {
        throughput(&self.all[..self.before])
    }

    /// While it became smaller: at least one slice.
    pub(crate) fn during(&self) -> Throughput {
        throughput(&self.all[self.began..=self.ended])
    }

    /// All of them, as milliseconds since the guest was to become smaller, and pages.
    pub(crate) fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        let place = |index: usize| (index as f64 - self.began as f64) * self.ms;
        self.all
            .iter()
            .enumerate()
            .map(move |(index, slice)| (place(index), slice.pages))
    }

    /// Milliseconds from the first slice in which it became smaller to the last one.
    pub(crate) fn shrinking_ms(&self) -> f64 {
        (self.ended - self.began) as f64 * self.ms
    }
}

fn throughput(slices: &[Slice]) -> Throughput {
    let mut pages: Vec<f64> = slices.iter().map(|slice| slice.pages).collect();
    pages.sort_by(f64::total_cmp);
    Throughput {
        median: pages[pages.len() / 2],
        worst: pages[pages.len() / 100],
        longest_ms: slices.iter().map(|slice| slice.longest_ms).fold(0.0, f64::max),
    }
}
