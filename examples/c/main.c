/* Runs a compiled model on zeros, or on the raw bytes of a file for each input, and prints its outputs.
 *
 *     nnc compile model.onnx -o model.so
 *     cc -O2 -D_GNU_SOURCE -I. -Iruntime/include examples/c/main.c ./model.so -Wl,-rpath,'$ORIGIN' -lm -pthread -o run     (model.h lies beside model.so)
 *     ./run THREADS [INPUT.raw ...]
 *
 * The sizes come from the library's own plan: nothing about the model is written here but the number of its inputs and outputs and the
 * shapes of its inputs, which a program knows of its model (nnc info model.so shows them). */
#include "model.h"
#include "nnc_pool.h"
#include <stdio.h>

/* lenet5: one input f32[1,1,28,28], one output. */
#ifndef SHAPE
#define SHAPE {1, 1, 28, 28}
#endif

static void check(int32_t code) {
  if (code) {
    fprintf(stderr, "nnc error %d: %s\n", code, nnc_error(code));
    exit(1);
  }
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 1;
  if (nnc_abi_version() != NNC_ABI_VERSION) {
    fprintf(stderr, "the library has another ABI version\n");
    return 1;
  }

  int64_t in_shape[] = SHAPE, out_shape[16];
  int32_t rank = sizeof in_shape / sizeof *in_shape;
  size_t count = 1;
  for (int k = 0; k < rank; k++) count *= (size_t)in_shape[k];
  float *x = (float *)calloc(count, sizeof *x);
  if (argc > 2) {
    FILE *f = fopen(argv[2], "rb");
    if (!f || fread(x, sizeof *x, count, f) != count) {
      fprintf(stderr, "%s: %zu floats are wanted\n", argv[2], count);
      return 1;
    }
    fclose(f);
  }

  /* Plan: the output's shape, and the bytes of workspace. */
  nnc_tensor input = {x, in_shape, rank, 1 /* float */}, output = {NULL, out_shape, 16, 1};
  size_t bytes = 0;
  check(nnc_plan(&input, &output, &bytes));
  size_t out_count = 1;
  int known = 1; /* a length below 0 is one that only the run finds out; it allocates such an output through the host */
  for (int k = 0; k < output.rank; k++) known &= out_shape[k] >= 0, out_count *= (size_t)out_shape[k];
  void *workspace = NULL;
  if (posix_memalign(&workspace, 64, bytes ? bytes : 64)) return 1;
  void *own = known ? malloc(out_count * sizeof(float)) : NULL;
  output.data = own;

  /* Run, as often as wanted. */
  nnc_pool *pool = nnc_pool_create(threads);
  nnc_host host = nnc_pool_host(pool);
  check(nnc_run(&input, &output, workspace, &host));

  out_count = 1;
  for (int k = 0; k < output.rank; k++) out_count *= (size_t)out_shape[k];
  for (size_t i = 0; i < out_count; i++) printf("%.9g\n", ((float *)output.data)[i]);
  nnc_pool_destroy(pool);
  free(own);
  free(workspace);
  free(x);
  return 0;
}
