/* A thread pool for C hosts of compiled models: pthreads, one header, no library.
 *
 *     #include "model.h"      // any header that nnc wrote: it declares nnc_host
 *     #include "nnc_pool.h"
 *
 *     nnc_pool *pool = nnc_pool_create(0);          // 0: one thread for each processor that this process may use
 *     nnc_host host = nnc_pool_host(pool);
 *     nnc_run(inputs, outputs, workspace, &host);   // as often as you like
 *     nnc_pool_release(pool);                       // memory that runs asked for: outputs without data, sizes that only they knew
 *     nnc_pool_destroy(pool);
 *
 * An idle thread spins for NNC_POOL_SPIN_NS, because the layers of a network follow each other within microseconds, then sleeps.
 * Indices are claimed in short runs from one counter, so that a slow core takes less of them; the calling thread works too. A pool
 * that is busy (a second caller, or a body that calls it again) does not wait: that call is a plain loop on its own thread.
 * Compile with -pthread; needs C99 and the __atomic builtins of gcc or clang, on Linux. */
#ifndef NNC_POOL_H
#define NNC_POOL_H

#ifndef _GNU_SOURCE
#error "define _GNU_SOURCE (cc -D_GNU_SOURCE): the pool asks which processors it may use"
#endif

#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifndef NNC_POOL_SPIN_NS
#define NNC_POOL_SPIN_NS 50000
#endif

typedef void (*nnc_pool_body)(void *arg, int64_t i);

typedef struct nnc_pool {
  uint64_t epoch;   /* odd while a loop is open; each loop has its own number */
  int32_t inside;   /* workers that may be reading the four fields below */
  nnc_pool_body body;
  void *arg;
  int64_t n, run;   /* iterations, and how many are claimed at once */
  int64_t next;
  int32_t sleepers, stop, busy, workers;
  int64_t spin_ns;
  pthread_mutex_t gate;
  pthread_cond_t wake;
  pthread_t *threads;
  void *blocks;     /* what runs asked for, linked through the head of each */
} nnc_pool;

static inline int64_t nnc_pool_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void nnc_pool_relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

static inline void nnc_pool_claim(nnc_pool *p, nnc_pool_body body, void *arg, int64_t n, int64_t run) {
  for (;;) {
    int64_t first = __atomic_fetch_add(&p->next, run, __ATOMIC_RELAXED);
    if (first >= n) return;
    int64_t end = n - first < run ? n : first + run;
    for (int64_t i = first; i < end; i++) body(arg, i);
  }
}

static inline uint64_t nnc_pool_news(nnc_pool *p, uint64_t seen) {
  uint64_t epoch = __atomic_load_n(&p->epoch, __ATOMIC_SEQ_CST);
  return epoch % 2 == 1 && epoch != seen ? epoch : 0;
}

/* The number of an open loop that is not `seen`; 0 when the pool ends. */
static inline uint64_t nnc_pool_wait(nnc_pool *p, uint64_t seen) {
  int64_t start = nnc_pool_now();
  do {
    for (int k = 0; k < 64; k++) {
      uint64_t epoch = nnc_pool_news(p, seen);
      if (epoch) return epoch;
      nnc_pool_relax();
    }
    if (__atomic_load_n(&p->stop, __ATOMIC_SEQ_CST)) return 0;
  } while (nnc_pool_now() - start < p->spin_ns);
  /* The caller looks for sleepers after it has opened a loop, this thread looks for a loop after it has become one. */
  __atomic_fetch_add(&p->sleepers, 1, __ATOMIC_SEQ_CST);
  pthread_mutex_lock(&p->gate);
  uint64_t epoch;
  while (!(epoch = nnc_pool_news(p, seen)) && !__atomic_load_n(&p->stop, __ATOMIC_SEQ_CST)) pthread_cond_wait(&p->wake, &p->gate);
  pthread_mutex_unlock(&p->gate);
  __atomic_fetch_sub(&p->sleepers, 1, __ATOMIC_SEQ_CST);
  return epoch;
}

static inline void *nnc_pool_work(void *arg) {
  nnc_pool *p = (nnc_pool *)arg;
  uint64_t seen = 0;
  while ((seen = nnc_pool_wait(p, seen)) != 0) {
    __atomic_fetch_add(&p->inside, 1, __ATOMIC_SEQ_CST);
    /* Entered before the loop was closed, so its caller waits for this thread; else the loop is not looked at. */
    if (__atomic_load_n(&p->epoch, __ATOMIC_SEQ_CST) == seen) nnc_pool_claim(p, p->body, p->arg, p->n, p->run);
    __atomic_fetch_sub(&p->inside, 1, __ATOMIC_SEQ_CST);
  }
  return NULL;
}

static inline void nnc_pool_wake(nnc_pool *p) {
  pthread_mutex_lock(&p->gate);
  pthread_mutex_unlock(&p->gate);
  pthread_cond_broadcast(&p->wake);
}

/* nnc_host.parallel_for: body(arg, i) once for each i in 0..n-1, in any order, on any thread of the pool. */
static inline void nnc_pool_parallel_for(void *ctx, int64_t n, nnc_pool_body body, void *arg) {
  nnc_pool *p = (nnc_pool *)ctx;
  if (n <= 1 || p->workers == 0 || __atomic_exchange_n(&p->busy, 1, __ATOMIC_ACQUIRE)) {
    for (int64_t i = 0; i < n; i++) body(arg, i);
    return;
  }
  int64_t run = n / ((int64_t)(p->workers + 1) * 16);
  p->body = body;
  p->arg = arg;
  p->n = n;
  p->run = run > 1 ? run : 1;
  __atomic_store_n(&p->next, 0, __ATOMIC_RELAXED);
  __atomic_fetch_add(&p->epoch, 1, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&p->sleepers, __ATOMIC_SEQ_CST) > 0) nnc_pool_wake(p);
  nnc_pool_claim(p, body, arg, n, p->run);
  __atomic_fetch_add(&p->epoch, 1, __ATOMIC_SEQ_CST);
  for (int spins = 0; __atomic_load_n(&p->inside, __ATOMIC_SEQ_CST) != 0; spins++) {
    if (spins < 2000) nnc_pool_relax();
    else sched_yield();
  }
  __atomic_store_n(&p->busy, 0, __ATOMIC_RELEASE);
}

/* nnc_host.alloc: memory that stays the pool's until nnc_pool_release. */
static inline void *nnc_pool_alloc(void *ctx, size_t bytes, size_t align) {
  nnc_pool *p = (nnc_pool *)ctx;
  void *block = NULL;
  if (bytes > SIZE_MAX - align || align < sizeof(void *) || posix_memalign(&block, align, bytes + align)) return NULL;
  pthread_mutex_lock(&p->gate);
  *(void **)block = p->blocks;
  p->blocks = block;
  pthread_mutex_unlock(&p->gate);
  return (char *)block + align;
}

/* Frees what runs asked for. Outputs that had no data lose theirs; no run may be under way. */
static inline void nnc_pool_release(nnc_pool *p) {
  pthread_mutex_lock(&p->gate);
  while (p->blocks) {
    void *next = *(void **)p->blocks;
    free(p->blocks);
    p->blocks = next;
  }
  pthread_mutex_unlock(&p->gate);
}

/* Waits for the threads and frees the pool, and what runs asked for. No loop may be open. */
static inline void nnc_pool_destroy(nnc_pool *p) {
  if (!p) return;
  nnc_pool_release(p);
  __atomic_store_n(&p->stop, 1, __ATOMIC_SEQ_CST);
  nnc_pool_wake(p);
  for (int k = 0; k < p->workers; k++) pthread_join(p->threads[k], NULL);
  pthread_mutex_destroy(&p->gate);
  pthread_cond_destroy(&p->wake);
  free(p->threads);
  free(p);
}

/* A pool of `threads` threads, the caller's included; 0 for as many as this process may run on. A system that refuses a thread gives
 * a smaller pool; NULL where there is no memory. */
static inline nnc_pool *nnc_pool_create(int threads) {
  cpu_set_t set;
  int available = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  if (threads <= 0) threads = available;
  nnc_pool *p = (nnc_pool *)calloc(1, sizeof *p);
  if (!p) return NULL;
  p->threads = (pthread_t *)calloc((size_t)threads, sizeof *p->threads);
  if (!p->threads) {
    free(p);
    return NULL;
  }
  p->spin_ns = threads > available ? 0 : NNC_POOL_SPIN_NS; /* spinning takes time from the threads that work */
  pthread_mutex_init(&p->gate, NULL);
  pthread_cond_init(&p->wake, NULL);
  while (p->workers < threads - 1 && pthread_create(&p->threads[p->workers], NULL, nnc_pool_work, p) == 0) p->workers++;
  return p;
}

/* What nnc_run takes. The pool must outlive the run. */
static inline nnc_host nnc_pool_host(nnc_pool *p) {
  nnc_host host;
  memset(&host, 0, sizeof host);
  host.size = sizeof host;
  host.ctx = p;
  host.threads = p ? p->workers + 1 : 1;
  host.parallel_for = p ? nnc_pool_parallel_for : NULL;
  host.alloc = p ? nnc_pool_alloc : NULL;
  return host;
}

#endif
