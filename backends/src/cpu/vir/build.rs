//! Writes kernels: fresh registers, folded integer arithmetic, structured control flow by closures.

use super::{ARGS, Addr, Func, I, IBin, ICmp, Inst, M, MBin, Shuffle, Src, Stmt, TASK, V, VBin, VCmp, VUn, X};

/// A kernel under construction. Results go to fresh registers unless the method's name ends in `_to`.
pub struct Builder {
    name: String,
    lanes: usize,
    vectors: u32,
    ints: u32,
    masks: u32,
    frame: u32,
    blocks: Vec<Vec<Stmt>>,
}

impl Builder {
    /// A kernel with vectors of `lanes` values.
    pub fn new(name: &str, lanes: usize) -> Builder {
        Builder { name: name.to_owned(), lanes, vectors: 0, ints: 2, masks: 0, frame: 0, blocks: vec![Vec::new()] }
    }

    pub fn finish(mut self) -> Func {
        let body = self.blocks.pop().unwrap_or_default();
        let Builder { name, lanes, vectors, ints, masks, frame, .. } = self;
        Func { name, lanes, vectors, ints, masks, frame, body }
    }

    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// Bytes of a vector.
    pub fn width(&self) -> i64 {
        self.lanes as i64 * 4
    }

    fn stmt(&mut self, s: Stmt) {
        self.blocks.last_mut().expect("a block is open").push(s);
    }

    pub fn inst(&mut self, i: Inst) {
        self.stmt(Stmt::Inst(i));
    }

    pub fn new_v(&mut self) -> V {
        self.vectors += 1;
        V(self.vectors - 1)
    }

    pub fn new_i(&mut self) -> I {
        self.ints += 1;
        I(self.ints - 1)
    }

    fn new_m(&mut self) -> M {
        self.masks += 1;
        M(self.masks - 1)
    }

    // Control flow.

    /// `for (iv = from; iv < to; iv += step) body`
    pub fn for_(&mut self, from: impl Into<X>, to: impl Into<X>, step: i64, body: impl FnOnce(&mut Builder, I)) {
        let iv = self.new_i();
        self.blocks.push(Vec::new());
        body(self, iv);
        let body = self.blocks.pop().unwrap_or_default();
        self.stmt(Stmt::Loop { iv, from: from.into(), to: to.into(), step, body });
    }

    /// The body `n` times; a constant count of one makes no loop.
    pub fn times(&mut self, n: impl Into<X>, body: impl FnOnce(&mut Builder)) {
        match n.into() {
            X::C(..=0) => {}
            X::C(1) => body(self),
            n => self.for_(0, n, 1, |b, _| body(b)),
        }
    }

    /// A decision known now makes no branch.
    pub fn if_else(&mut self, c: ICmp, a: impl Into<X>, b: impl Into<X>, then: impl FnOnce(&mut Builder), els: impl FnOnce(&mut Builder)) {
        match (a.into(), b.into()) {
            (X::C(a), X::C(b)) => {
                if c.eval(a, b) {
                    then(self)
                } else {
                    els(self)
                }
            }
            (a, b) => {
                self.blocks.push(Vec::new());
                then(self);
                let then = self.blocks.pop().unwrap_or_default();
                self.blocks.push(Vec::new());
                els(self);
                let els = self.blocks.pop().unwrap_or_default();
                self.stmt(Stmt::If { c, a, b, then, els });
            }
        }
    }

    pub fn if_(&mut self, c: ICmp, a: impl Into<X>, b: impl Into<X>, then: impl FnOnce(&mut Builder)) {
        self.if_else(c, a, b, then, |_| {});
    }

    // Integers.

    /// Word `n` of the arguments.
    pub fn word(&mut self, n: u32) -> I {
        let d = self.new_i();
        self.inst(Inst::ILoad { d, a: Addr::from(ARGS).off(i64::from(n) * 8), wide: true });
        d
    }

    pub fn task(&self) -> X {
        X::R(TASK)
    }

    /// A fresh register that holds `x`.
    pub fn var(&mut self, x: impl Into<X>) -> I {
        let d = self.new_i();
        self.inst(Inst::Int { d, x: x.into() });
        d
    }

    /// A register that holds `x`, which need not be fresh and must not be changed.
    pub fn reg(&mut self, x: impl Into<X>) -> I {
        match x.into() {
            X::R(r) => r,
            c => self.var(c),
        }
    }

    pub fn set(&mut self, d: I, x: impl Into<X>) {
        let x = x.into();
        if x != X::R(d) {
            self.inst(Inst::Int { d, x });
        }
    }

    /// `d += x`
    pub fn inc(&mut self, d: I, x: impl Into<X>) {
        match self.small(x.into()) {
            X::C(0) => {}
            x => self.inst(Inst::IBin { op: IBin::Add, d, a: X::R(d), b: x }),
        }
    }

    /// Constants of more than 31 bits go to a register, since instructions cannot hold them.
    fn small(&mut self, x: X) -> X {
        match x {
            X::C(c) if i32::try_from(c).is_err() => X::R(self.var(c)),
            x => x,
        }
    }

    fn ibin(&mut self, op: IBin, a: X, b: X) -> X {
        let (a, b) = (self.small(a), self.small(b));
        let d = self.new_i();
        self.inst(Inst::IBin { op, d, a, b });
        X::R(d)
    }

    /// `a + b`
    pub fn iadd(&mut self, a: impl Into<X>, b: impl Into<X>) -> X {
        match (a.into(), b.into()) {
            (X::C(a), X::C(b)) => X::C(a.checked_add(b).expect("a constant offset fits 64 bits")),
            (x, X::C(0)) | (X::C(0), x) => x,
            (c @ X::C(_), r) => self.ibin(IBin::Add, r, c),
            (a, b) => self.ibin(IBin::Add, a, b),
        }
    }

    /// `a - b`
    pub fn isub(&mut self, a: impl Into<X>, b: impl Into<X>) -> X {
        match (a.into(), b.into()) {
            (X::C(a), X::C(b)) => X::C(a.checked_sub(b).expect("a constant offset fits 64 bits")),
            (x, X::C(0)) => x,
            (a, b) => self.ibin(IBin::Sub, a, b),
        }
    }

    /// `a * b`
    pub fn imul(&mut self, a: impl Into<X>, b: impl Into<X>) -> X {
        match (a.into(), b.into()) {
            (X::C(a), X::C(b)) => X::C(a.checked_mul(b).expect("a constant offset fits 64 bits")),
            (X::C(0), _) | (_, X::C(0)) => X::C(0),
            (x, X::C(1)) | (X::C(1), x) => x,
            (r, X::C(c)) | (X::C(c), r) if c > 0 && c.count_ones() == 1 => self.ibin(IBin::Shl, r, X::C(i64::from(c.trailing_zeros()))),
            (c @ X::C(_), r) => self.ibin(IBin::Mul, r, c),
            (a, b) => self.ibin(IBin::Mul, a, b),
        }
    }

    /// `a / b`, rounded down; neither is negative.
    pub fn idiv(&mut self, a: impl Into<X>, b: impl Into<X>) -> X {
        match (a.into(), b.into()) {
            (X::C(a), X::C(b)) => X::C(a.checked_div(b).expect("a divisor is not zero")),
            (x, X::C(1)) => x,
            (x, X::C(c)) if c > 0 && c.count_ones() == 1 => self.ibin(IBin::Shr, x, X::C(i64::from(c.trailing_zeros()))),
            (a, b) => self.ibin(IBin::DivU, a, b),
        }
    }

    /// `a % b`; neither is negative.
    pub fn irem(&mut self, a: impl Into<X>, b: impl Into<X>) -> X {
        match (a.into(), b.into()) {
            (X::C(a), X::C(b)) => X::C(a.checked_rem(b).expect("a divisor is not zero")),
            (_, X::C(1)) => X::C(0),
            (x, X::C(c)) if c > 0 && c.count_ones() == 1 && c < 1 << 31 => self.ibin(IBin::And, x, X::C(c - 1)),
            (a, b) => self.ibin(IBin::RemU, a, b),
        }
    }

    /// `(a / b, a % b)`
    pub fn idivrem(&mut self, a: impl Into<X>, b: impl Into<X>) -> (X, X) {
        let (a, b) = (a.into(), b.into());
        let q = self.idiv(a, b);
        let r = match (q, b) {
            (X::C(_), _) | (_, X::C(1)) => self.irem(a, b),
            _ => {
                let whole = self.imul(q, b);
                self.isub(a, whole)
            }
        };
        (q, r)
    }

    pub fn imin(&mut self, a: impl Into<X>, b: impl Into<X>) -> X {
        match (a.into(), b.into()) {
            (X::C(a), X::C(b)) => X::C(a.min(b)),
            (c @ X::C(_), r) => self.ibin(IBin::Min, r, c),
            (a, b) => self.ibin(IBin::Min, a, b),
        }
    }

    pub fn imax(&mut self, a: impl Into<X>, b: impl Into<X>) -> X {
        match (a.into(), b.into()) {
            (X::C(a), X::C(b)) => X::C(a.max(b)),
            (c @ X::C(_), r) => self.ibin(IBin::Max, r, c),
            (a, b) => self.ibin(IBin::Max, a, b),
        }
    }

    /// `c(a, b) ? t : f`
    pub fn iselect(&mut self, c: ICmp, a: impl Into<X>, b: impl Into<X>, t: impl Into<X>, f: impl Into<X>) -> X {
        let (a, b, t, f) = (a.into(), b.into(), t.into(), f.into());
        if let (X::C(a), X::C(b)) = (a, b) {
            return if c.eval(a, b) { t } else { f };
        }
        if t == f {
            return t;
        }
        // Lowerings have an immediate for the second comparand and for `f` only.
        let (c, a, b) = if let X::C(_) = a { (c.swap(), b, a) } else { (c, a, b) };
        let (c, t, f) = if let X::C(_) = t { (c.negate(), f, t) } else { (c, t, f) };
        let (b, f) = (self.small(b), self.small(f));
        let t = X::R(self.reg(t));
        let d = self.new_i();
        self.inst(Inst::ISelect { d, c, a, b, t, f });
        X::R(d)
    }

    /// `base + x`, as a register.
    pub fn ptr(&mut self, base: I, x: impl Into<X>) -> I {
        let p = self.iadd(base, x);
        self.reg(p)
    }

    /// An i64 from memory.
    pub fn load_i64(&mut self, a: impl Into<Addr>) -> I {
        let d = self.new_i();
        self.inst(Inst::ILoad { d, a: a.into(), wide: true });
        d
    }

    /// An i32 from memory.
    pub fn load_i32(&mut self, a: impl Into<Addr>) -> I {
        let d = self.new_i();
        self.inst(Inst::ILoad { d, a: a.into(), wide: false });
        d
    }

    /// Scratch memory of the call: `bytes` of it, uninitialised.
    pub fn frame(&mut self, bytes: u32) -> I {
        let d = self.new_i();
        let off = self.frame;
        self.frame += bytes.next_multiple_of(64);
        self.inst(Inst::Frame { d, off });
        d
    }

    pub fn prefetch(&mut self, a: impl Into<Addr>, first: bool) {
        self.inst(Inst::Prefetch { a: a.into(), first });
    }

    // Vectors.

    pub fn load(&mut self, a: impl Into<Addr>) -> V {
        let d = self.new_v();
        self.load_to(d, a);
        d
    }

    pub fn load_to(&mut self, d: V, a: impl Into<Addr>) {
        self.inst(Inst::Load { d, a: a.into() });
    }

    pub fn store(&mut self, a: impl Into<Addr>, s: V) {
        self.inst(Inst::Store { a: a.into(), s });
    }

    pub fn load_mask(&mut self, a: impl Into<Addr>, m: M) -> V {
        let d = self.new_v();
        self.inst(Inst::LoadMask { d, a: a.into(), m });
        d
    }

    pub fn store_mask(&mut self, a: impl Into<Addr>, s: V, m: M) {
        self.inst(Inst::StoreMask { a: a.into(), s, m });
    }

    /// One f32 of memory in all lanes.
    pub fn splat(&mut self, a: impl Into<Addr>) -> V {
        let d = self.new_v();
        self.inst(Inst::Splat { d, a: a.into() });
        d
    }

    pub fn splat_int(&mut self, x: impl Into<X>) -> V {
        let x = self.reg(x);
        let d = self.new_v();
        self.inst(Inst::SplatInt { d, x });
        d
    }

    pub fn constant(&mut self, c: f32) -> V {
        self.bits(c.to_bits())
    }

    /// A constant by its bits.
    pub fn bits(&mut self, bits: u32) -> V {
        let d = self.new_v();
        self.inst(Inst::Const { d, bits });
        d
    }

    pub fn copy(&mut self, s: V) -> V {
        let d = self.new_v();
        self.copy_to(d, s);
        d
    }

    pub fn copy_to(&mut self, d: V, s: V) {
        self.inst(Inst::Copy { d, s });
    }

    pub fn bin(&mut self, op: VBin, a: V, b: impl Into<Src>) -> V {
        let d = self.new_v();
        self.bin_to(op, d, a, b);
        d
    }

    pub fn bin_to(&mut self, op: VBin, d: V, a: V, b: impl Into<Src>) {
        self.inst(Inst::Bin { op, d, a, b: b.into() });
    }

    pub fn un(&mut self, op: VUn, a: V) -> V {
        let d = self.new_v();
        self.inst(Inst::Un { op, d, a });
        d
    }

    pub fn add(&mut self, a: V, b: impl Into<Src>) -> V {
        self.bin(VBin::Add, a, b)
    }

    pub fn sub(&mut self, a: V, b: impl Into<Src>) -> V {
        self.bin(VBin::Sub, a, b)
    }

    pub fn mul(&mut self, a: V, b: impl Into<Src>) -> V {
        self.bin(VBin::Mul, a, b)
    }

    pub fn div(&mut self, a: V, b: impl Into<Src>) -> V {
        self.bin(VBin::Div, a, b)
    }

    /// `a > b ? a : b`: a NaN in `b` survives, one in `a` is lost.
    pub fn max(&mut self, a: V, b: impl Into<Src>) -> V {
        self.bin(VBin::Max, a, b)
    }

    /// `a < b ? a : b`: a NaN in `b` survives, one in `a` is lost.
    pub fn min(&mut self, a: V, b: impl Into<Src>) -> V {
        self.bin(VBin::Min, a, b)
    }

    /// `a` or `b`, whichever is larger (or smaller); NaN if either is.
    pub fn extreme(&mut self, op: VBin, a: V, b: V) -> V {
        let x = self.bin(op, a, b);
        let nan = self.cmp(VCmp::Unord, a, a);
        self.select(nan, a, x)
    }

    pub fn neg(&mut self, a: V) -> V {
        self.bin(VBin::Xor, a, Src::C(0x8000_0000))
    }

    pub fn abs(&mut self, a: V) -> V {
        self.bin(VBin::And, a, Src::C(0x7fff_ffff))
    }

    /// `a*b + c`
    pub fn fma(&mut self, a: V, b: impl Into<Src>, c: impl Into<Src>) -> V {
        let d = self.new_v();
        self.inst(Inst::Fma { neg: false, d, a, b: b.into(), c: c.into() });
        d
    }

    /// `c - a*b`
    pub fn fnma(&mut self, a: V, b: impl Into<Src>, c: impl Into<Src>) -> V {
        let d = self.new_v();
        self.inst(Inst::Fma { neg: true, d, a, b: b.into(), c: c.into() });
        d
    }

    /// `acc += a*b`
    pub fn fma_to(&mut self, acc: V, a: V, b: impl Into<Src>) {
        self.inst(Inst::Fma { neg: false, d: acc, a, b: b.into(), c: Src::R(acc) });
    }

    /// `acc += a*b` over pairs of bf16.
    pub fn dot_to(&mut self, acc: V, a: V, b: V) {
        self.inst(Inst::Dot { d: acc, a, b });
    }

    /// All lanes rounded to bf16.
    pub fn store_bf16(&mut self, a: impl Into<Addr>, s: V) {
        self.inst(Inst::StoreBf16 { a: a.into(), s });
    }

    /// `c[0]*x^n + ... + c[n]`, by Horner's rule.
    pub fn poly(&mut self, x: V, c: &[f32]) -> V {
        let p = self.constant(c[0]);
        for &k in &c[1..] {
            self.inst(Inst::Fma { neg: false, d: p, a: p, b: Src::R(x), c: k.into() });
        }
        p
    }

    pub fn cmp(&mut self, c: VCmp, a: V, b: impl Into<Src>) -> M {
        let d = self.new_m();
        self.inst(Inst::Cmp { c, d, a, b: b.into() });
        d
    }

    /// `m ? t : f`, lane by lane.
    pub fn select(&mut self, m: M, t: V, f: V) -> V {
        let d = self.new_v();
        self.inst(Inst::Select { d, m, t, f });
        d
    }

    pub fn swap(&mut self, a: V, dist: u8) -> V {
        let d = self.new_v();
        self.inst(Inst::Swap { d, a, dist });
        d
    }

    pub fn shuffle(&mut self, how: Shuffle, a: V, b: V) -> V {
        let d = self.new_v();
        self.inst(Inst::Shuffle { how, d, a, b });
        d
    }

    /// Lanes below `n`.
    pub fn tail(&mut self, n: impl Into<X>) -> M {
        let n = self.small(n.into());
        let d = self.new_m();
        self.inst(Inst::Tail { d, n });
        d
    }

    pub fn mask(&mut self, op: MBin, a: M, b: M) -> M {
        let d = self.new_m();
        self.inst(Inst::Mask { op, d, a, b });
        d
    }

    /// All lanes combined by `op`, in every lane; `op` must be associative enough for the caller.
    pub fn across(&mut self, op: VBin, a: V) -> V {
        let mut x = a;
        let mut dist = self.lanes / 2;
        while dist > 0 {
            let y = self.swap(x, dist as u8);
            x = self.bin(op, x, y);
            dist /= 2;
        }
        x
    }

    /// Turns `lanes` rows into columns: lane `j` of result `i` is lane `i` of row `j`.
    pub fn transpose(&mut self, rows: &[V]) -> Vec<V> {
        use Shuffle::{Fours, Lanes, MixHigh, MixLow};
        debug_assert_eq!(rows.len(), self.lanes);
        // Squares of four by four: of four rows, the columns of each of their fours.
        let mut columns = vec![];
        for r in rows.chunks(4) {
            let [low, high, low2, high2] = [(MixLow, 0), (MixHigh, 0), (MixLow, 2), (MixHigh, 2)].map(|(how, i)| self.shuffle(how, r[i], r[i + 1]));
            for (x, y) in [(low, low2), (high, high2)] {
                columns.push(self.shuffle(Lanes([0, 1, 0, 1]), x, y));
                columns.push(self.shuffle(Lanes([2, 3, 2, 3]), x, y));
            }
        }
        match self.lanes {
            8 => [[0; 4], [1; 4]]
                .iter()
                .flat_map(|p| (0..4).map(|j| self.shuffle(Fours(*p), columns[j], columns[4 + j])).collect::<Vec<_>>())
                .collect(),
            16 => {
                let mut out = vec![rows[0]; 16];
                for (half, p) in [[0, 1, 0, 1], [2, 3, 2, 3]].into_iter().enumerate() {
                    for j in 0..4 {
                        let (x, y) = (self.shuffle(Fours(p), columns[j], columns[4 + j]), self.shuffle(Fours(p), columns[8 + j], columns[12 + j]));
                        out[8 * half + j] = self.shuffle(Fours([0, 2, 0, 2]), x, y);
                        out[8 * half + 4 + j] = self.shuffle(Fours([1, 3, 1, 3]), x, y);
                    }
                }
                out
            }
            _ => columns,
        }
    }

    /// `a0 b0 a1 b1...` in two vectors.
    pub fn zip(&mut self, a: V, b: V) -> (V, V) {
        use Shuffle::Fours;
        let (low, high) = (self.shuffle(Shuffle::MixLow, a, b), self.shuffle(Shuffle::MixHigh, a, b));
        match self.lanes {
            4 => (low, high),
            8 => (self.shuffle(Fours([0; 4]), low, high), self.shuffle(Fours([1; 4]), low, high)),
            _ => {
                let [x, y] = [[0, 1, 0, 1], [2, 3, 2, 3]].map(|p| self.shuffle(Fours(p), low, high));
                (self.shuffle(Fours([0, 2, 1, 3]), x, x), self.shuffle(Fours([0, 2, 1, 3]), y, y))
            }
        }
    }

    /// The even lanes of `a`, then of `b`.
    pub fn even(&mut self, a: V, b: V) -> V {
        use Shuffle::Fours;
        let (a, b) = match self.lanes {
            4 => (a, b),
            8 => (self.shuffle(Fours([0; 4]), a, b), self.shuffle(Fours([1; 4]), a, b)),
            _ => (self.shuffle(Fours([0, 2, 0, 2]), a, b), self.shuffle(Fours([1, 3, 1, 3]), a, b)),
        };
        self.shuffle(Shuffle::Lanes([0, 2, 0, 2]), a, b)
    }
}
