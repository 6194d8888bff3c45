// assert() in kernels. As in C, NDEBUG decides anew at each #include.
#undef assert
#ifdef NDEBUG
#define assert(...) ((void)0)
#else
#define assert(...) ((__VA_ARGS__) ? (void)0 : emulator::assertion(#__VA_ARGS__, __FILE__, __LINE__, __PRETTY_FUNCTION__))
#endif
