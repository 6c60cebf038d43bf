//! Power that goes at any moment: the file system is whole, what was synced is there, and every page is one that its file had.

use std::boxed::Box;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::format;
use std::pin::Pin;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::world::{Disk, Durable, End, Numbers, World, pause};
use crate::fs::mounted::{Age, Missing, MountFlags, Mounted, WriteAt};
use crate::fs::pagefs::{FsError, Volume, check, run};
use crate::mm::mapping::ReadAhead;
use crate::pfn::PAGE_BYTES;
use crate::tests::machine::machine;

/// What a file may be found to be.
#[derive(Clone, Default)]
struct Versions(Vec<Vec<u8>>);

impl Versions {
    fn now(&self) -> &Vec<u8> {
        self.0.last().unwrap()
    }

    /// What is there is durable.
    fn settle(&mut self) {
        let now = self.now().clone();
        self.0 = vec![now];
    }

    fn allows(&self, found: &[u8]) -> Result<(), String> {
        let sizes = self.0.iter().map(Vec::len);
        let (least, most) = (sizes.clone().min().unwrap(), sizes.max().unwrap());
        if !(least..=most).contains(&found.len()) {
            return Err(format!("{} bytes, not {least} to {most}", found.len()));
        }
        for (page, bytes) in found.chunks(PAGE_BYTES).enumerate() {
            let is_it = |version: &Vec<u8>| {
                let start = (page * PAGE_BYTES).min(version.len());
                let end = (start + bytes.len()).min(version.len());
                let there = &version[start..end];
                bytes[..there.len()] == *there && bytes[there.len()..].iter().all(|byte| *byte == 0)
            };
            if !self.0.iter().any(is_it) {
                return Err(format!(
                    "page {page} is none that the file had: {:?}",
                    &bytes[..4]
                ));
            }
        }
        Ok(())
    }
}

/// What may be found after a loss of power.
#[derive(Default)]
struct Model {
    files: Vec<Versions>,
    /// What each name may lead to: files by number, or nothing.
    names: BTreeMap<String, Vec<Option<usize>>>,
    synced: u32,
}

impl Model {
    fn current(&self, name: &str) -> Option<usize> {
        self.names.get(name).and_then(|may_be| *may_be.last().unwrap())
    }

    fn names_are_durable(&mut self) {
        for may_be in self.names.values_mut() {
            *may_be = vec![*may_be.last().unwrap()];
        }
        self.synced += 1;
    }

    fn lead(&mut self, name: &str, to: Option<usize>) {
        let may_be = self.names.entry(name.into()).or_insert_with(|| vec![None]);
        may_be.push(to);
    }
}

type Fs<'a, 'm> = Mounted<'m, World<'a, 'm>>;

/// A program that changes files at random; what may be found is known before anything is done.
async fn program(fs: &Fs<'_, '_>, model: &RefCell<Model>, numbers: &Numbers, world: &World<'_, '_>) {
    for step in 0..10_000 {
        let name = format!("{}file{}", ["", "dir/"][numbers.index(2)], numbers.below(4));
        let current = model.borrow().current(&name);
        match numbers.below(12) {
            0 if current.is_some() => {
                model.borrow_mut().lead(&name, None);
                fs.remove(name.as_bytes()).await.unwrap();
            }
            1 => {
                fs.sync().await.unwrap();
                let mut model = model.borrow_mut();
                model.files.iter_mut().for_each(Versions::settle);
                model.names_are_durable();
            }
            2 => {
                fs.inodes().give_up(world.cpu, 2, &fs);
                fs.names().give_up(3);
            }
            _ => change(fs, model, numbers, (&name, current), step).await,
        }
        pause().await;
    }
}

async fn change(
    fs: &Fs<'_, '_>,
    model: &RefCell<Model>,
    numbers: &Numbers,
    (name, current): (&str, Option<usize>),
    step: usize,
) {
    let number = current.unwrap_or_else(|| {
        let mut model = model.borrow_mut();
        model.files.push(Versions(vec![Vec::new()]));
        let number = model.files.len() - 1;
        model.lead(name, Some(number));
        number
    });
    let file = fs.open(name.as_bytes(), Missing::Create).await.unwrap();
    let mut now = model.borrow().files[number].now().clone();
    assert_eq!(fs.size(&file), now.len() as u64, "{name}");
    match numbers.below(8) {
        0 => {
            let mut found = vec![0; now.len()];
            let to = |done: usize, bytes: &[u8]| {
                found[done..done + bytes.len()].copy_from_slice(bytes);
                Ok(())
            };
            let mut ahead = ReadAhead::default();
            let read = fs.read(&file, &mut ahead, (0, now.len() + 10), to).await.unwrap();
            assert!(read == now.len() && found == now, "{name}");
        }
        1 => {
            fs.fsync(&file).await.unwrap();
            let mut model = model.borrow_mut();
            model.files[number].settle();
            model.names_are_durable();
        }
        2 => {
            let size = numbers.index(12 * PAGE_BYTES);
            now.resize(size, 0);
            model.borrow_mut().files[number].0.push(now);
            fs.set_size(&file, size as u64).await.unwrap();
        }
        _ => {
            let at = numbers.index(10 * PAGE_BYTES);
            let len = 1 + numbers.index(3 * PAGE_BYTES);
            let bytes: Vec<u8> = (0..len).map(|n| (n + step * 7).to_le_bytes()[0] | 1).collect();
            now.resize(now.len().max(at + len), 0);
            now[at..at + len].copy_from_slice(&bytes);
            model.borrow_mut().files[number].0.push(now);
            let from = |done: usize, part: &mut [u8]| {
                part.copy_from_slice(&bytes[done..done + part.len()]);
                Ok(())
            };
            let at = (WriteAt::Offset(at as u64), len);
            assert_eq!(fs.write(&file, at, from).await.unwrap().1, len);
        }
    }
    fs.close(&file).await;
}

/// Writes back and commits now and then, as a daemon does.
async fn daemon(fs: &Fs<'_, '_>, numbers: &Numbers) {
    let mut now = 0;
    loop {
        for _ in 0..numbers.below(60) {
            pause().await;
        }
        now += 10;
        let age = Age {
            now,
            expire: numbers.below(40),
            nr_pages: 8,
        };
        fs.write_back_old(age).await.unwrap();
    }
}

/// Runs the program on a new machine until the power goes.
fn life(disk: &Disk, model: &RefCell<Model>, numbers: &Numbers, steps: u64) {
    machine!(mm, cpu, 512, 1);
    let world = World {
        mm: &mm,
        cpu: &cpu,
        disk,
    };
    let fs = RefCell::new(None);
    let mounting = async {
        *fs.borrow_mut() = Some(
            Mounted::mount(world, crate::fs::Heap, crate::fs::Heap, MountFlags::default())
                .await
                .unwrap(),
        );
    };
    assert_eq!(world.drive(numbers, 1_000_000, mounting, Vec::new()), End::Done);
    let fs = fs.into_inner().unwrap();
    let others: Vec<Pin<Box<dyn Future<Output = ()>>>> = vec![
        Box::pin(fs.serve()),
        Box::pin(fs.serve()),
        Box::pin(fs.serve()),
        Box::pin(daemon(&fs, numbers)),
    ];
    let end = world.drive(numbers, steps, program(&fs, model, numbers, &world), others);
    assert_eq!(end, End::Cut);
    mm.validate().unwrap();
}

/// What is on the disk is one of the things that it may be, which the model is from now on.
fn look(disk: &Disk, model: &mut Model, seed: u64) {
    let usage = run(check(Durable::of(disk))).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    assert!(usage.generation > 0);
    let mut volume = run(Volume::mount(Durable::of(disk))).unwrap();
    for (name, may_be) in &mut model.names {
        let found = match run(volume.resolve(name.as_bytes())) {
            Ok(number) => Some(run(volume.read_file(number)).unwrap()),
            Err(FsError::NotFound) => None,
            Err(error) => panic!("seed {seed}: {error}"),
        };
        let verdict = |number: &Option<usize>| match (number, &found) {
            (None, None) => Ok(()),
            (Some(number), Some(found)) => model.files[*number].allows(found),
            (Some(_), None) => Err("is not there".into()),
            (None, Some(_)) => Err("is there".into()),
        };
        let verdicts: Vec<Result<(), String>> = may_be.iter().map(verdict).collect();
        let fits = verdicts.iter().position(Result::is_ok);
        let fits = fits.unwrap_or_else(|| panic!("seed {seed}: {name}: {verdicts:?}"));
        let number = may_be[fits];
        *may_be = vec![number];
        if let (Some(number), Some(found)) = (number, found) {
            model.files[number] = Versions(vec![found]);
        }
    }
}

fn lives(seed: u64) -> u32 {
    let (disk, numbers) = (Disk::new(400, 16), Numbers::new(seed));
    Durable::format(&disk);
    let mut volume = run(Volume::mount(Durable::of(&disk))).unwrap();
    let name = crate::fs::pagefs::Name::new(b"dir").unwrap();
    let root = crate::fs::pagefs::InodeNr::ROOT;
    run(volume.create(root, &name, crate::fs::pagefs::Kind::Directory)).unwrap();
    run(volume.commit()).unwrap();
    let model = RefCell::new(Model::default());
    for _ in 0..4 {
        life(&disk, &model, &numbers, 500 + numbers.below(6000));
        disk.lose_power(|| numbers.below(2) == 0);
        look(&disk, &mut model.borrow_mut(), seed);
    }
    model.into_inner().synced
}

#[test]
fn whenever_the_power_goes_what_was_synced_is_there_and_nothing_is_made_up() {
    let synced: u32 = (1..=12).chain([92]).map(lives).sum();
    assert!(synced > 50, "hardly anything was synced: {synced}");
}

/// `BALLAST_FS_SEEDS=1000 cargo test -p guest-mm --release many_losses_of_power -- --ignored`
#[test]
#[ignore = "runs as many seeds as the environment asks for"]
fn many_losses_of_power() {
    let seeds = std::env::var("BALLAST_FS_SEEDS").map_or(200, |seeds| seeds.parse().unwrap());
    (1..=seeds).for_each(|seed| {
        lives(seed);
    });
}
