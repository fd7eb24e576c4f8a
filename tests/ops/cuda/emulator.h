// Runs a CUDA kernel on a CPU, so that its arithmetic, its indices and its barriers can be tested without a GPU.
//
// A block's threads are fibers: each runs until it meets a barrier or a shuffle, then the next one does. The order in
// which they run is shuffled at each turn, so that a missing barrier shows.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#define EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __restrict__
#define __align__(n) __attribute__((aligned(n)))

struct dim3 { unsigned x, y, z; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
using std::max;
using std::min;

static dim3 threadIdx, blockIdx, blockDim, gridDim;

inline float __uint_as_float(uint32_t bits) { float y; std::memcpy(&y, &bits, 4); return y; }
inline uint32_t __float_as_uint(float x) { uint32_t y; std::memcpy(&y, &x, 4); return y; }
inline int __float_as_int(float x) { return int(__float_as_uint(x)); }
inline float __int_as_float(int x) { return __uint_as_float(uint32_t(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }

inline float emulated_half_to_float(uint16_t bits) { _Float16 h; std::memcpy(&h, &bits, 2); return float(h); }
inline uint16_t emulated_float_to_half(float x) { _Float16 h = _Float16(x); uint16_t b; std::memcpy(&b, &h, 2); return b; }
inline uint16_t emulated_float_to_bf16(float x) {
    uint32_t b = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
}

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    int waits = 0;  // 0 runs, 1 waits for its warp, 2 waits for the block, 3 is done
    uint64_t offered = 0;
};

static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static int running;
static void (*body)(const void*);
static const void* body_argument;

inline void wait_as(int what) {
    fibers[running].waits = what;
    swapcontext(&fibers[running].context, &scheduler);
}

inline void __syncthreads() { wait_as(2); }
inline void __syncwarp(unsigned = ~0u) { wait_as(1); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T> T exchange(T value, int from) {
    std::memcpy(&fibers[running].offered, &value, sizeof value);
    __syncwarp();
    T got;
    int warp = running / 32 * 32;
    std::memcpy(&got, &fibers[std::min<size_t>(warp + from, fibers.size() - 1)].offered, sizeof got);
    __syncwarp();
    return got;
}

template <typename T> T __shfl_xor_sync(unsigned, T v, int mask, int = 32) { return exchange(v, running % 32 ^ mask); }
template <typename T> T __shfl_sync(unsigned, T v, int lane, int = 32) { return exchange(v, lane & 31); }
template <typename T> T __shfl_down_sync(unsigned, T v, int by, int = 32) {
    int lane = running % 32;
    return exchange(v, lane + by < 32 ? lane + by : lane);
}
template <typename T> T __shfl_up_sync(unsigned, T v, int by, int = 32) {
    int lane = running % 32;
    return exchange(v, lane >= by ? lane - by : lane);
}
inline unsigned __ballot_sync(unsigned, int condition) {
    unsigned mine = condition ? 1u << running % 32 : 0u;
    unsigned all = 0;
    for (int lane = 0; lane < 32; ++lane) all |= __shfl_sync(~0u, mine, lane) & 1u << lane;
    return all;
}
inline int __any_sync(unsigned m, int c) { return __ballot_sync(m, c) != 0; }
inline int __all_sync(unsigned m, int c) { return __ballot_sync(m, !c) == 0; }

template <typename T, typename V> T atomicAdd(T* p, V v) { T old = *p; *p = T(old + v); return old; }
inline uint64_t atomicMax(unsigned long long* p, unsigned long long v) { auto old = *p; *p = std::max(old, v); return old; }

static void enter() {
    body(body_argument);
    fibers[running].waits = 3;
    swapcontext(&fibers[running].context, &scheduler);
}

inline void run_block(std::mt19937& random) {
    int n = int(fibers.size());
    for (int i = 0; i < n; ++i) {
        Fiber& f = fibers[i];
        f.waits = 0;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.get();
        f.context.uc_stack.ss_size = 256 << 10;
        f.context.uc_link = &scheduler;
        makecontext(&f.context, enter, 0);
    }
    std::vector<int> order(n);
    for (int i = 0; i < n; ++i) order[i] = i;
    for (;;) {
        std::shuffle(order.begin(), order.end(), random);
        int done = 0, ran = 0;
        for (int i : order) {
            if (fibers[i].waits == 3) ++done;
            if (fibers[i].waits != 0) continue;
            ++ran;
            running = i;
            threadIdx = {unsigned(i), 0, 0};
            swapcontext(&scheduler, &fibers[i].context);
        }
        if (done == n) return;
        if (ran) continue;
        bool block = true;  // all that are not done wait for the block
        for (int w = 0; w < n; w += 32) {
            bool warp = false, other = false;
            for (int i = w; i < std::min(n, w + 32); ++i) warp |= fibers[i].waits == 1, other |= fibers[i].waits == 2;
            if (warp) {
                if (other) std::abort();  // some lanes wait for the warp and some for the block
                block = false;
                for (int i = w; i < std::min(n, w + 32); ++i)
                    if (fibers[i].waits == 1) fibers[i].waits = 0;
            }
        }
        if (block)
            for (Fiber& f : fibers)
                if (f.waits == 2) f.waits = 0;
    }
}

template <typename P> void run_grid(void (*kernel)(P), const void* parameters, const int* grid, int threads, int seed) {
    static void (*call)(P);
    call = kernel;
    body = [](const void* p) { call(*static_cast<const P*>(p)); };
    body_argument = parameters;
    fibers = std::vector<Fiber>(threads);
    for (Fiber& f : fibers) f.stack.reset(new char[256 << 10]);
    std::mt19937 random(seed);
    gridDim = {unsigned(grid[0]), unsigned(grid[1]), unsigned(grid[2])};
    blockDim = {unsigned(threads), 1, 1};
    for (unsigned z = 0; z < gridDim.z; ++z)
        for (unsigned y = 0; y < gridDim.y; ++y)
            for (unsigned x = 0; x < gridDim.x; ++x) {
                blockIdx = {x, y, z};
                run_block(random);
            }
}

// Lets Python run a kernel of the source above this line.
#define EMULATE(kernel)                                                                   \
    extern "C" void run_##kernel(const void* p, const int* grid, int threads, int seed) { \
        run_grid(kernel, p, grid, threads, seed);                                         \
    }
