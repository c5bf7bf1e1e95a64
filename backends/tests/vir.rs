//! Random kernels: every lowering must do what the interpreter does, under register pressure too.

mod support;

use nnc_backends::cpu::isa::Isa;
use nnc_backends::cpu::kernels::{Factor, Kernel, Size, Tasks};
use nnc_backends::cpu::vir::{Addr, Builder, I, IBin, ICmp, Inst, M, MBin, Reg, Shuffle, Src, V, VBin, VCmp, VUn, X};
use support::{Engine, Word, engines, noise, run};

struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())]
    }
}

/// Registers that a random kernel works on; all stay alive to its end.
struct Pool {
    v: Vec<V>,
    i: Vec<I>,
    m: Vec<M>,
}

const BINS: [VBin; 13] = [
    VBin::Add,
    VBin::Sub,
    VBin::Mul,
    VBin::Div,
    VBin::Max,
    VBin::Min,
    VBin::And,
    VBin::AndNot,
    VBin::Or,
    VBin::Xor,
    VBin::IAdd,
    VBin::ISub,
    VBin::IMul,
];
const UNS: [VUn; 9] = [VUn::Sqrt, VUn::Nearest, VUn::Floor, VUn::Ceil, VUn::Trunc, VUn::FromInt, VUn::Shl(3), VUn::Shr(5), VUn::Sar(7)];
const ICMPS: [ICmp; 6] = [ICmp::Lt, ICmp::Le, ICmp::Gt, ICmp::Ge, ICmp::Eq, ICmp::Ne];
const VCMPS: [VCmp; 7] = [VCmp::Lt, VCmp::Le, VCmp::Gt, VCmp::Ge, VCmp::Eq, VCmp::Ne, VCmp::Unord];

fn src(d: &mut Dice, p: &Pool) -> Src {
    if d.roll(3) == 0 { Src::C(d.pick(&[0.5f32, -1.25, 3.0]).to_bits()) } else { Src::R(d.pick(&p.v)) }
}

fn int(d: &mut Dice, p: &Pool) -> X {
    if d.roll(3) == 0 { X::C(d.roll(1000) as i64 - 300) } else { X::R(d.pick(&p.i)) }
}

/// One random operation on the registers of the pool. Memory is read in the first half of the buffer, written in the second.
fn step(b: &mut Builder, d: &mut Dice, p: &Pool, buffer: I) {
    let lanes = b.lanes();
    let (v, w, x) = (d.pick(&p.v), d.pick(&p.v), d.pick(&p.v));
    let (i, m) = (d.pick(&p.i), d.pick(&p.m));
    let spot = Addr::from(buffer).off(d.roll(200) as i64 * 4);
    let target = Addr::from(buffer).off(1024 + d.roll(200) as i64 * 4);
    let inst = match d.roll(22) {
        0 => Inst::Load { d: v, a: spot },
        1 => Inst::Store { a: target, s: v },
        2 => Inst::LoadMask { d: v, a: spot, m },
        3 => Inst::StoreMask { a: target, s: v, m },
        4 => Inst::Splat { d: v, a: spot },
        5 => Inst::SplatInt { d: v, x: i },
        6 | 7 => Inst::Bin { op: d.pick(&BINS), d: v, a: w, b: src(d, p) },
        8 if lanes == 16 && d.roll(3) == 0 => Inst::Bin { op: VBin::Scale, d: v, a: w, b: src(d, p) },
        8 => Inst::Un { op: d.pick(&UNS), d: v, a: w },
        9..=12 => {
            let (b, c) = (src(d, p), src(d, p));
            let c = if let (Src::C(_), Src::C(_)) = (b, c) { Src::R(x) } else { c };
            Inst::Fma { neg: d.roll(2) == 0, d: v, a: w, b, c }
        }
        13 => Inst::Cmp { c: d.pick(&VCMPS), d: m, a: v, b: src(d, p) },
        14 => Inst::Select { d: v, m, t: w, f: x },
        15 => Inst::Swap { d: v, a: w, dist: 1 << d.roll(lanes.ilog2() as usize) },
        16 => {
            let mut four = |n: usize| [0; 4].map(|_| d.roll(n) as u8);
            let how = match (four(4)[0], lanes) {
                (0, _) => Shuffle::MixLow,
                (1, _) => Shuffle::MixHigh,
                (2, 8 | 16) => Shuffle::Fours(four(lanes / 4)),
                _ => Shuffle::Lanes(four(4)),
            };
            Inst::Shuffle { how, d: v, a: w, b: x }
        }
        17 => Inst::Tail { d: m, n: X::C(d.roll(20) as i64 - 2) },
        18 => Inst::Mask { op: d.pick(&[MBin::And, MBin::Or, MBin::Xor]), d: m, a: d.pick(&p.m), b: d.pick(&p.m) },
        19 => {
            let op = d.pick(&[IBin::Add, IBin::Sub, IBin::Mul, IBin::Shl, IBin::Shr, IBin::And, IBin::Min, IBin::Max, IBin::DivU, IBin::RemU]);
            let second = match op {
                IBin::Shl | IBin::Shr => X::C(d.roll(40) as i64),
                IBin::DivU | IBin::RemU => X::C(1 + d.roll(50) as i64),
                _ => int(d, p),
            };
            Inst::IBin { op, d: i, a: int(d, p), b: second }
        }
        20 => Inst::ISelect { d: i, c: d.pick(&ICMPS), a: X::R(d.pick(&p.i)), b: int(d, p), t: X::R(d.pick(&p.i)), f: int(d, p) },
        _ => Inst::Lea { d: i, a: Addr { base: d.pick(&p.i), index: Some((d.pick(&p.i), d.pick(&[1, 2, 4, 8]))), disp: 12 } },
    };
    b.inst(inst);
    // The payload of a NaN depends on the order of operands, and bit operations would show it: no NaN lives on.
    inst.regs(&mut |r, written| {
        if let (Reg::V(v), true) = (r, written) {
            b.bin_to(VBin::Max, v, v, -1e6);
            b.bin_to(VBin::Min, v, v, 1e6);
        }
    });
}

fn steps(b: &mut Builder, d: &mut Dice, p: &Pool, buffer: I, n: usize, depth: usize) {
    for _ in 0..n {
        match d.roll(12) {
            0 if depth < 2 => {
                let count = int_count(d);
                b.for_(0, count, 1, |b, _| steps(b, d, p, buffer, n / 2, depth + 1));
            }
            1 if depth < 2 => {
                let (c, x, y) = (d.pick(&ICMPS), X::R(d.pick(&p.i)), int(d, p));
                let dice = std::cell::RefCell::new(&mut *d);
                b.if_else(
                    c,
                    x,
                    y,
                    |b| steps(b, &mut dice.borrow_mut(), p, buffer, n / 2, depth + 1),
                    |b| steps(b, &mut dice.borrow_mut(), p, buffer, n / 2, depth + 1),
                );
            }
            _ => step(b, d, p, buffer),
        }
    }
}

fn int_count(d: &mut Dice) -> X {
    X::C(d.roll(4) as i64)
}

/// A kernel of random operations on `vectors` and `ints` registers that are alive throughout.
fn random(seed: u64, lanes: usize, vectors: usize, ints: usize, masks: usize) -> Kernel {
    let mut d = Dice(seed * 2654435761 + 88172645463325252);
    let mut b = Builder::new("random", lanes);
    let buffer = b.word(0);
    let p = Pool {
        v: (0..vectors).map(|n| b.load(Addr::from(buffer).off(n as i64 * 20))).collect(),
        i: (0..ints).map(|n| b.var(n as i64 * 37 - 100)).collect(),
        m: (0..masks).map(|n| b.tail(n as i64 + 1)).collect(),
    };
    steps(&mut b, &mut d, &p, buffer, 25, 0);
    let width = b.width();
    for (n, v) in p.v.iter().enumerate() {
        b.store(Addr::from(buffer).off(2048 + n as i64 * width), *v);
    }
    for (n, i) in p.i.iter().enumerate() {
        let v = b.splat_int(*i);
        b.store(Addr::from(buffer).off(2048 + (vectors + n) as i64 * width), v);
    }
    Kernel { func: b.finish(), tasks: Tasks(vec![Factor::Size(Size::Const(1))]) }
}

/// Equal bits; any NaN (an integer's bits, say) equals any other.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

#[test]
fn lowerings_agree_with_the_interpreter() {
    let mut buffer = noise(2048, 7);
    buffer.iter_mut().for_each(|x| *x *= 10.0);
    for (isa, engine) in engines() {
        if engine == Engine::Interpreter {
            continue;
        }
        for seed in 0..150 {
            // From plenty of registers to far too few.
            let (vectors, ints) = (4 + seed as usize % 34, 3 + seed as usize % 19);
            let kernel = random(seed, isa.lanes(), vectors, ints, 4);
            let (mut want, mut got) = ([buffer.clone()], [buffer.clone()]);
            run(&kernel, isa, Engine::Interpreter, &mut want, &[Word::Buf(0)]).unwrap_or_else(|e| panic!("{seed}: {e}\n{}", kernel.func));
            run(&kernel, isa, engine, &mut got, &[Word::Buf(0)]).unwrap_or_else(|e| panic!("{isa:?} {engine:?} {seed}: {e}\n{}", kernel.func));
            for (n, (g, w)) in got[0].iter().zip(&want[0]).enumerate() {
                assert!(same(*g, *w), "{isa:?} {engine:?} {seed}: word {n} is {g}, not {w}\n{}", kernel.func);
            }
        }
    }
}

#[test]
fn emulator_and_processor_agree() {
    // Nothing to compare with where the processor lacks the instructions.
    if Isa::native() == Isa::Portable {
        return;
    }
    let isa = Isa::native();
    for seed in 1000..1050 {
        let kernel = random(seed, isa.lanes(), 20, 16, 4);
        let (mut a, mut b) = ([noise(2048, seed)], [noise(2048, seed)]);
        run(&kernel, isa, Engine::Emulator, &mut a, &[Word::Buf(0)]).unwrap_or_else(|e| panic!("{e}"));
        run(&kernel, isa, Engine::Native, &mut b, &[Word::Buf(0)]).unwrap_or_else(|e| panic!("{e}"));
        assert!(a[0].iter().zip(&b[0]).all(|(x, y)| same(*x, *y)), "{seed}\n{}", kernel.func);
    }
}

/// Rows become columns, two vectors one by turns, and every other lane comes out again.
#[test]
fn lanes_change_places() {
    for (isa, engine) in engines() {
        let (lanes, width) = (isa.lanes(), 4 * isa.lanes() as i64);
        let mut b = Builder::new("lanes", lanes);
        let (x, y) = (b.word(0), b.word(1));
        let rows: Vec<V> = (0..lanes as i64).map(|i| b.load(Addr::from(x).off(i * width))).collect();
        let columns = b.transpose(&rows);
        let (low, high) = b.zip(rows[0], rows[1]);
        let even = b.even(rows[0], rows[1]);
        for (i, v) in columns.into_iter().chain([low, high, even]).enumerate() {
            b.store(Addr::from(y).off(i as i64 * width), v);
        }
        let kernel = Kernel { func: b.finish(), tasks: Tasks(vec![Factor::Size(Size::Const(1))]) };
        let from: Vec<f32> = (0..lanes * lanes).map(|i| i as f32).collect();
        let mut bufs = [from.clone(), vec![0.0; (lanes + 3) * lanes]];
        run(&kernel, isa, engine, &mut bufs, &[Word::Buf(0), Word::Buf(1)]).unwrap_or_else(|e| panic!("{isa:?} {engine:?}: {e}"));
        let mut want: Vec<f32> = (0..lanes * lanes).map(|i| from[i % lanes * lanes + i / lanes]).collect();
        want.extend((0..lanes).flat_map(|i| [from[i], from[lanes + i]]));
        want.extend((0..lanes).map(|i| from[2 * i]));
        assert_eq!(bufs[1], want, "{isa:?} {engine:?}");
    }
}
