// OpenMP's teams of threads. Each thread of ours that computes has a team of its own, which stays and waits
// for more. As soon as a process has more such threads than CPUs, libgomp lets none of them spin at a
// barrier, and a graph has hundreds: the embedded model then decodes at a tenth of its speed.
#pragma once

#if defined(__linux__)
extern "C" int omp_pause_resource_all(int kind) __attribute__((weak));  // OpenMP 5.0; null without a runtime
#endif

namespace llava_native {

// Let go of this thread's team. The next graph makes another, which takes some 100 us.
inline void release_team() {
#if defined(__linux__)
    if (omp_pause_resource_all) {
        omp_pause_resource_all(1);  // omp_pause_soft
    }
#endif
}

}  // namespace llava_native
