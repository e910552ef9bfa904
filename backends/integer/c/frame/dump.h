/* The result of every step of ${n} in a file that NumPy and `qcompiler compare` read. Written by qcompiler.

   Compile model.c and ${n}_dump.c with -D${N}_HOOK, on a machine with files. The functions return 0, or 1 after an error. */
#ifndef ${N}_DUMP_H
#define ${N}_DUMP_H

#ifdef __cplusplus
extern "C" {
#endif

/* Begin a file, such as dump.npz. The next call of ${n}_run writes to the file the codes of its inputs and of each step. */
int ${n}_dump_open(const char *path);

/* Complete the file. */
int ${n}_dump_close(void);

#ifdef __cplusplus
}
#endif

#endif
