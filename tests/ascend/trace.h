/* What the tests read: which operators were called, with which types of tensor, and which devices were opened. */

#ifdef __cplusplus
extern "C" {
#endif

/* An operator was called, or put into a graph. */
void trace_operator(const char* name);

/* A tensor of this type was described: CANN's number, 11 is float64 in both of its interfaces. */
void trace_type(int type);

/* A device was opened. */
void trace_device(int device);

/* The names since the last call, sorted, a line each, "float64" among them where there was such a tensor. The text is
 * good until the next call. */
const char* emulator_operators(void);

#ifdef __cplusplus
}
#endif
