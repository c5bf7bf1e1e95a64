//! Calls compiled models through the C ABI.

use nnc_backends::abi::{Functions, Host, Tensor as Raw};
use nnc_ir::{DType, Tensor};
use std::ffi::{CStr, c_void};

#[repr(C, align(64))]
#[derive(Clone)]
struct Line([u64; 8]);

/// Memory aligned as the ABI wants it.
pub struct Workspace(Vec<Line>);

impl Workspace {
    pub fn new(bytes: usize) -> Workspace {
        // Filled with rubbish: nothing may rely on zeros.
        Workspace(vec![Line([0xdead_beef_dead_beef; 8]); bytes.div_ceil(64)])
    }

    pub fn ptr(&mut self) -> *mut c_void {
        self.0.as_mut_ptr().cast()
    }
}

/// An input or output in the caller's memory.
pub struct Slot {
    pub dtype: i32,
    pub shape: Vec<i64>,
    pub data: Vec<u8>,
}

impl Slot {
    pub fn of(t: &Tensor) -> Slot {
        Slot { dtype: t.dtype().abi_code(), shape: t.shape().iter().map(|d| *d as i64).collect(), data: t.bytes().to_vec() }
    }

    fn raw(&mut self, rank: usize) -> Raw {
        Raw { data: self.data.as_mut_ptr().cast(), shape: self.shape.as_mut_ptr(), rank: rank as i32, dtype: self.dtype }
    }
}

/// What `nnc_error` says of a code.
pub fn text(f: &Functions, code: i32) -> String {
    // SAFETY: the function returns a constant string for every code.
    unsafe { CStr::from_ptr((f.error)(code)) }.to_str().expect("texts are UTF-8").to_owned()
}

/// Plans and runs; the error's text where a code comes back. Outputs get memory from the plan's shapes.
pub fn run(f: &Functions, inputs: &[Tensor], outputs: usize, host: Option<&Host>) -> Result<Vec<Tensor>, String> {
    let mut slots: Vec<Slot> = inputs.iter().map(Slot::of).collect();
    let raw_in: Vec<Raw> = slots
        .iter_mut()
        .map(|s| {
            let rank = s.shape.len();
            s.raw(rank)
        })
        .collect();
    let mut outs: Vec<Slot> = (0..outputs).map(|_| Slot { dtype: 0, shape: vec![0; 8], data: vec![] }).collect();
    let mut raw_out: Vec<Raw> = outs.iter_mut().map(|s| s.raw(8)).collect();
    let mut bytes = 0;
    let check = |code: i32| if code == 0 { Ok(()) } else { Err(text(f, code)) };
    // SAFETY: the arrays are as long as the model's lists of inputs and outputs.
    check(unsafe { (f.plan)(raw_in.as_ptr(), raw_out.as_mut_ptr(), &mut bytes) })?;
    for (s, r) in outs.iter_mut().zip(&mut raw_out) {
        s.shape.truncate(r.rank as usize);
        s.dtype = r.dtype;
        let dtype = DType::from_abi_code(r.dtype).expect("a dtype");
        let elems: i64 = s.shape.iter().product();
        s.data = vec![0xaa; (elems.max(0) as usize * dtype.bytes()).max(1)];
        r.data = s.data.as_mut_ptr().cast();
    }
    let mut workspace = Workspace::new(bytes);
    let host = host.map_or(std::ptr::null(), |h| h as *const Host);
    // SAFETY: as above; outputs and workspace have the sizes that the plan gave.
    check(unsafe { (f.run)(raw_in.as_ptr(), raw_out.as_mut_ptr(), workspace.ptr(), host) })?;
    Ok(outs
        .into_iter()
        .map(|s| {
            let dtype = DType::from_abi_code(s.dtype).expect("a dtype");
            let shape: Vec<usize> = s.shape.iter().map(|d| *d as usize).collect();
            let n = shape.iter().product::<usize>() * dtype.bytes();
            Tensor::from_bytes(dtype, shape, s.data[..n].to_vec().into()).expect("as long as its shape says")
        })
        .collect())
}
