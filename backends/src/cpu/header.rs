//! The C header of a compiled model.

use super::Options;
use nnc_ir::kernel::{Port, Program};
use std::fmt::Write;

/// Structs and prototypes, with the model's inputs and outputs as comments.
pub fn text(p: &Program, o: &Options) -> String {
    let prefix = &o.prefix;
    let mut s = String::new();
    let mut line = |l: String| {
        s.push_str(&l);
        s.push('\n');
    };
    line(format!("/* {}: compiled by nnc {}. */", comment(&p.name), env!("CARGO_PKG_VERSION")));
    let guard: String = format!("{prefix}H").chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
    line(format!("#ifndef {guard}\n#define {guard}\n"));
    line(STRUCTS.into());
    for (what, ports) in [("inputs", &p.inputs), ("outputs", &p.outputs)] {
        line(format!("/* {what}{} */", list(ports)));
    }
    line(format!(
        "
int32_t     {prefix}abi_version(void);
const char *{prefix}describe(void);  /* JSON */
/* Checks the inputs' dtypes, ranks and shapes, writes the outputs' (-1 where only the run can know) and the workspace's size. */
int32_t     {prefix}plan(const nnc_tensor *inputs, nnc_tensor *outputs, size_t *workspace_bytes);
/* The workspace is 64-byte aligned; calls on different workspaces may run at once. */
int32_t     {prefix}run(const nnc_tensor *inputs, nnc_tensor *outputs, void *workspace, const nnc_host *host);
const char *{prefix}launches(void);  /* JSON: an array, what each launch that host->trace tells of computes */
const char *{prefix}error(int32_t code);  /* the text of a code that plan or run returned; 0 is success */

#ifdef __cplusplus
}}
#endif
#endif"
    ));
    s
}

fn list(ports: &[Port]) -> String {
    ports.iter().enumerate().fold(String::new(), |mut s, (i, p)| {
        // Writing to a string cannot fail.
        let _ = write!(s, "{} {i} `{}`: {}", if i > 0 { "," } else { ":" }, comment(&p.name), p.ty);
        s
    })
}

/// Text that does not end the comment it stands in.
fn comment(s: &str) -> String {
    s.replace("*/", "* /").replace(['\n', '\r', '\0'], " ")
}

/// Shared by all models' headers.
const STRUCTS: &str = "#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern \"C\" {
#endif

#ifndef NNC_ABI_VERSION
#define NNC_ABI_VERSION 1

typedef struct nnc_tensor {
  /* Elements in row-major order. Types of fewer than 8 bits (int4, uint4, int2, uint2, float4e2m1, float6e2m3, float6e3m2) take a byte each:
     the value's low bits count, integers are sign- or zero-extended on output. Files pack them; memory does not. */
  void    *data;   /* input: NULL = not given. output: the caller's memory, or NULL = allocate through host->alloc */
  int64_t *shape;  /* the caller's storage; outputs': written by plan and run */
  int32_t  rank;   /* output: in, the capacity of shape; out, the rank */
  int32_t  dtype;  /* the numbers of ONNX TensorProto.DataType. output: written by plan and run; run refuses another than 0 or the output's */
} nnc_tensor;

typedef struct nnc_host {  /* NULL stands for: one thread, no allocation, embedded weights */
  size_t  size;            /* sizeof(nnc_host) */
  void   *ctx;
  int32_t threads;
  void  (*parallel_for)(void *ctx, int64_t n, void (*body)(void *arg, int64_t i), void *arg);  /* each i once, any order, any thread */
  void *(*alloc)(void *ctx, size_t bytes, size_t align);  /* for outputs without data, and for results whose size only the run knows;
                              all blocks are the host's, which may release those that are no output's data when the run has returned */
  const void *weights;     /* external weights: the file, mapped, 64-byte aligned (run refuses other addresses) */
  size_t  weights_bytes;
  void  (*trace)(void *ctx, int64_t launch, int32_t phase);  /* around each launch, phase 0 and 1, on the calling thread; NULL: none */
  /* For models that read files of pictures (ImageDecoder), else NULL: the picture in a file, channels 0 RGB, 1 BGR, 2 grey. With samples
     NULL it writes height and width to sizes, both 0 where it can read none; then, sizes being those, height*width*(3 or 1) samples. */
  void  (*decode)(void *ctx, const uint8_t *file, size_t bytes, int32_t channels, int64_t sizes[2], uint8_t *samples);
} nnc_host;
#endif
";
