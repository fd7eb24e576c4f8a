"""In how many passes shared memory answers 16-byte loads of a warp, for patterns that the scan's kernels choose among.

    METRIC=l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum
    ncu -k shared_reads --metrics $METRIC python benchmarks/ops/shared_reads.py

Each pattern makes 1,000 loads a lane. Needs CuPy.
"""

import cupy

SOURCE = r"""
extern "C" __global__ void shared_reads(float* out, int pattern) {
    __shared__ __align__(16) float4 data[256];
    const int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) data[i] = make_float4(i, i, i, i);
    __syncwarp();
    const int addresses[8] = {
        0,                                    // all lanes the same
        (lane >> 1) % 8,                      // lanes i and i^1 the same: B and C in the scan
        (lane & 1) | lane >> 2 << 1,          // lanes i and i^2 the same
        lane % 8,                             // lanes i and i^8 the same
        lane >> 3,                            // eight neighbours the same
        ((lane & 1) | lane >> 4 << 1) * 17 + (lane >> 3 & 1) * 68,  // dt and x in the scan
        lane,                                 // all different
        lane >> 2 & 7,                        // four neighbours the same
    };
    int at = addresses[pattern];
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 1
    for (int i = 0; i < 1000; i++) {
        const float4 v = data[at];
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        at ^= __float_as_int(v.x) == -1;  // never, but the compiler cannot know
    }
    out[lane] = sum.x + sum.y + sum.z + sum.w;
}
"""

if __name__ == "__main__":
    kernel, out = cupy.RawKernel(SOURCE, "shared_reads"), cupy.zeros(32, dtype=cupy.float32)
    for pattern in range(8):
        kernel((1,), (32,), (out, pattern))
    cupy.cuda.Device().synchronize()
