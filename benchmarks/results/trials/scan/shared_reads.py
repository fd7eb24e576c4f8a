
import torch, cupy
src=r"""
extern "C" __global__ void k(float* out, int which){
 __shared__ __align__(16) float4 s[256]; int l=threadIdx.x; for(int i=l;i<256;i+=32) s[i]=make_float4(i,i,i,i); __syncwarp();
 int a[8]; a[0]=0; a[1]=(l>>1)%8; a[2]=(l&1)|((l>>2)<<1); a[3]=l%8; a[4]=l>>3; a[5]=((l&1)|(l>>4)<<1)*17+((l>>3)&1)*68; a[6]=l; a[7]=(l>>2)&7;
 float4 v=make_float4(0,0,0,0); int at=a[which]; 
 #pragma unroll 1
 for(int i=0;i<1000;i++){ float4 w=s[at]; v.x+=w.x; v.y+=w.y; v.z+=w.z; v.w+=w.w; at ^= __float_as_int(w.x)==-1; }
 out[l]=v.x+v.y+v.z+v.w; }
"""
k=cupy.RawKernel(src,"k"); o=cupy.zeros(32,dtype=cupy.float32)
for w in range(8): k((1,),(32,),(o,w))
cupy.cuda.Device().synchronize()
