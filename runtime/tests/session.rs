//! Sessions over a model written by hand against the C ABI: shapes from the plan, outputs that the run sizes, workspaces, errors.

use nnc::abi::{Functions, Host, Tensor as Raw};
use nnc::threads::Pool;
use nnc::{Library, Session, Size, Tensor};
use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;

const ABOUT: &CStr = cr#"{"name":"double","inputs":[{"name":"x","dtype":"f32","shape":["N"]},{"name":"scale","dtype":"f32","shape":[]}],
 "outputs":[{"name":"y","dtype":"f32","shape":["N"]},{"name":"positive","dtype":"f32","shape":["n$0"]}],"workspace_bytes":"4*N","flops":"N"}"#;

unsafe extern "C" fn version() -> i32 {
    1
}

unsafe extern "C" fn describe() -> *const c_char {
    ABOUT.as_ptr()
}

unsafe extern "C" fn error(code: i32) -> *const c_char {
    if code == 11 { c"too long".as_ptr() } else { c"other".as_ptr() }
}

/// y has x's length; how many are positive only the run knows. More than 100 elements are refused.
unsafe extern "C" fn plan(x: *const Raw, y: *mut Raw, bytes: *mut usize) -> i32 {
    // SAFETY: the session gives two inputs and two outputs with room for their shapes.
    unsafe {
        let n = *(*x).shape;
        if n > 100 {
            return 11;
        }
        for (k, size) in [(0, n), (1, -1)] {
            let y = &mut *y.add(k);
            assert!(y.rank >= 1 && y.data.is_null());
            (*y.shape, y.rank) = (size, 1);
        }
        *bytes = 4 * n as usize;
    }
    0
}

struct Job {
    x: *const f32,
    y: *mut f32,
    scale: f32,
}

unsafe extern "C" fn one(job: *mut c_void, i: i64) {
    // SAFETY: `run` lends a job whose arrays have more than `i` elements.
    unsafe {
        let job = &*job.cast::<Job>();
        *job.y.add(i as usize) = *job.x.add(i as usize) * job.scale;
    }
}

unsafe extern "C" fn run(x: *const Raw, y: *mut Raw, work: *mut c_void, host: *const Host) -> i32 {
    // SAFETY: shapes and memory are as planned.
    unsafe {
        let host = &*host;
        assert_eq!((host.size, work as usize % 64), (size_of::<Host>(), 0));
        let n = *(*x).shape;
        let scale = &*x.add(1);
        let scale = if scale.data.is_null() { 2.0 } else { *scale.data.cast::<f32>() };
        let work = work.cast::<f32>();
        let mut job = Job { x: (*x).data.cast(), y: work, scale };
        host.parallel_for.unwrap()(host.ctx, n, one, (&raw mut job).cast());
        let scaled = std::slice::from_raw_parts(work, n as usize);
        (*y).data.cast::<f32>().copy_from_nonoverlapping(scaled.as_ptr(), scaled.len());
        let positive: Vec<f32> = scaled.iter().copied().filter(|v| *v > 0.0).collect();
        let out = &mut *y.add(1);
        assert!(out.data.is_null());
        out.data = host.alloc.unwrap()(host.ctx, 4 * positive.len(), 64);
        if out.data.is_null() {
            return 5;
        }
        out.data.cast::<f32>().copy_from_nonoverlapping(positive.as_ptr(), positive.len());
        (*out.shape, out.rank) = (positive.len() as i64, 1);
    }
    0
}

fn session(threads: usize) -> Session {
    let functions = Functions { abi_version: version, describe, plan, run, error, launches: None };
    // SAFETY: the functions above keep the ABI, and are part of this program.
    let library = unsafe { Library::new(functions, Box::new(())) }.unwrap();
    Session::native(library, Arc::new(Pool::new(threads)))
}

fn x(n: usize) -> Tensor {
    Tensor::new(&[n], &(0..n).map(|i| i as f32 - 2.0).collect::<Vec<_>>())
}

#[test]
fn outputs_of_planned_and_of_unplanned_sizes() {
    let s = session(2);
    assert_eq!(s.inputs()[0].shape, [Size::Symbolic("N".into())]);
    for n in [5, 0, 3, 40] {
        let y = s.run(&[x(n), Tensor::scalar(3f32)]).unwrap();
        let want: Vec<f64> = x(n).to_f64s().iter().map(|v| v * 3.0).collect();
        assert_eq!(y[0].to_f64s(), want);
        assert_eq!(y[1].to_f64s(), want.iter().copied().filter(|v| *v > 0.0).collect::<Vec<_>>());
        assert_eq!(s.flops(&[Some(x(n)), None]), Some(n as f64));
    }
    // An input that is not given arrives as NULL; constants of one repeated element and misaligned ones are given as any.
    assert_eq!(s.run_some(&[Some(x(4)), None]).unwrap()[0].to_f64s(), [-4.0, -2.0, 0.0, 2.0]);
    let ones = Tensor::splat(nnc::ir::DType::F32, vec![6], 1f32.to_le_bytes().to_vec().into()).unwrap();
    assert_eq!(s.run_some(&[Some(ones), None]).unwrap()[1].to_f64s(), [2.0; 6]);
    let shifted = bytes::Bytes::from([vec![0], 1.5f32.to_le_bytes().to_vec()].concat()).slice(1..);
    let shifted = Tensor::from_bytes(nnc::ir::DType::F32, vec![1], shifted).unwrap();
    assert_eq!(s.run_some(&[Some(shifted), None]).unwrap()[0].to_f64s(), [3.0]);
}

#[test]
fn bound_runs_repeat() {
    let s = session(1);
    let mut bound = s.bind(&[Some(x(9)), None]).unwrap();
    assert_eq!(bound.workspace_bytes(), 36);
    assert!(bound.outputs().is_err());
    for _ in 0..3 {
        bound.run().unwrap();
        assert_eq!(bound.outputs().unwrap()[1].to_f64s(), [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
    }
}

#[test]
fn wrong_inputs_are_found_before_the_library_sees_them() {
    let s = session(1);
    let code = |r: nnc::ir::Result<Vec<Tensor>>| r.unwrap_err().code().text();
    assert_eq!(code(s.run(&[])), "E0301");
    assert_eq!(code(s.run(&[Tensor::scalar(1f32), Tensor::scalar(1f32)])), "E0301");
    assert_eq!(code(s.run(&[Tensor::new(&[1], &[1f64]), Tensor::scalar(1f32)])), "E0301");
    // What the library says itself comes back in its words.
    assert_eq!(s.run(&[x(101), Tensor::scalar(1f32)]).unwrap_err().message(), "too long");
}

#[test]
fn many_callers() {
    let s = session(3);
    std::thread::scope(|scope| {
        for n in 1..9 {
            let s = &s;
            scope.spawn(move || {
                for _ in 0..100 {
                    let y = s.run(&[x(n), Tensor::scalar(0.5f32)]).unwrap();
                    assert_eq!(y[0].to_f64s(), x(n).to_f64s().iter().map(|v| v * 0.5).collect::<Vec<_>>());
                }
            });
        }
    });
}

/// What nothing reads and may yet be an error of the run is one on every engine: an index outside, sizes that do not fit, in a branch as well.
#[test]
fn what_must_fail_fails_unread() {
    let (f32s, i64s) = (|n: usize| Tensor::new(&[n], &vec![1f32; n]), |v: &[i64]| Tensor::new(&[v.len()], v));
    let index = [[f32s(4), i64s(&[0, -4])], [f32s(4), i64s(&[0, 4])]];
    let sizes = [[f32s(3), f32s(3)], [f32s(3), f32s(2)]];
    let cases = [
        ("module m(x: f32[4], i: i64[2]) -> (y: f32[4]) { z = gather(x, i); return relu(x) }", &index),
        ("module m(x: f32[4], i: i64[2]) -> (y: f32[4]) { z = exp(gather(x, i)); return x * z.shape[0] }", &index),
        ("module m(x: f32[N], w: f32[M]) -> (y: f32[N]) { z = x + w; return relu(x) }", &sizes),
        ("module m(x: f32[N], w: f32[M]) -> (y: f32[M]) { z = reshape(x, shape=[M]); return relu(w) }", &sizes),
        (
            "module m(x: f32[4], i: i64[2]) -> (y: f32[4]) {
               return if(x[0] > 0, x, i) do (x: f32[4], i: i64[2]) { z = gather(x, i); return x } do (x: f32[4], i: i64[2]) { return -x }
             }",
            &index,
        ),
    ];
    for (text, [fine, wrong]) in cases {
        let graph = nnc::parse("m.nn".as_ref(), text.into(), &nnc::Options::default(), &[]).unwrap_or_else(|e| panic!("{text}: {e}")).graph;
        for (engine, level) in [(nnc::Engine::Interpreter, 0), (nnc::Engine::Jit, 0), (nnc::Engine::Jit, 3), (nnc::Engine::SharedLibrary, 2)] {
            let options = nnc::Options { engine, level, threads: 1, ..nnc::Options::default() };
            let session = nnc::session(graph.clone(), &options, &mut ()).unwrap_or_else(|e| panic!("{text}: {e}"));
            session.run(fine).unwrap_or_else(|e| panic!("{engine:?} -O{level}: {text}: {e}"));
            assert!(session.run(wrong).is_err(), "{engine:?} -O{level}: {text}");
        }
    }
}
