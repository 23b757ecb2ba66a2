// Lets a library that is compiled beside a new glibc load beside an old one: what got a newer symbol version without any
// need is bound to the version that has always been there. `readelf --dyn-syms` shows what a library asks for.
#include <features.h>

#if defined(__GLIBC__) && defined(__x86_64__)

// Those of 2.29 differ from the first ones in errno alone, and in the name that a call gets by default. A name of its own
// in C++, because the compiler has a declaration of `name` that is not hidden.
#define INSTRUCTRL_FIRST_VERSION(name)                                                                          \
  extern "C" double instructrl_first_##name(double);                                                            \
  __asm__(".symver instructrl_first_" #name "," #name "@GLIBC_2.2.5");                                          \
  extern "C" __attribute__((visibility("hidden"), used)) double instructrl_hidden_##name(double) __asm__(#name); \
  double instructrl_hidden_##name(double x) { return instructrl_first_##name(x); }

INSTRUCTRL_FIRST_VERSION(exp)
INSTRUCTRL_FIRST_VERSION(exp2)
INSTRUCTRL_FIRST_VERSION(log)

// libstdc++ counts references without atomics where glibc, since 2.32, says that there is one thread. Here there never is.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

#endif
