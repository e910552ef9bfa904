/* The kernels of sequential. Written by qcompiler.

   Codes are integers that stand for real numbers: real = scale * (code - zero_point). Sizes and
   distances are counted in elements, not in bytes. */
#ifndef SEQUENTIAL_KERNELS_H
#define SEQUENTIAL_KERNELS_H

#include <stdint.h>

/* From the accumulator of a channel to its code: round(x * multiplier * 2^(exponent - 31)) + zero_point. */
typedef struct {
    const int32_t *multiplier; /* below 2^31 */
    const int8_t *exponent;
    int32_t next;              /* 1 where each channel has a multiplier, 0 where they share one */
    int32_t zero_point;
    int32_t low;
    int32_t high;
    const int32_t *lows;       /* limits of each channel in place of low and high, or none */
    const int32_t *highs;
} sequential_requantize_channels_single_t;

typedef struct {
    int32_t batch;
    int32_t height, width, channels;
    int32_t out_height, out_width, out_channels;
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x;
    int32_t dilation_y, dilation_x;
    int32_t top, left;    /* padding in front */
    int32_t groups;
    const int8_t *weight;   /* [out_channels][kernel_height][kernel_width][channels / groups] */
    const int32_t *bias;   /* [out_channels], less the zero point of x times the sum of the weights */
    const int8_t *outside;  /* [channels / groups] zero points of x, which taps outside of the image read */
    sequential_requantize_channels_single_t to;
} sequential_conv_channels_last_i8_i8_single_t;

/* Convolution of x: [batch][height][width][channels] to y: [batch][out_height][out_width][out_channels]. */
void sequential_conv_channels_last_i8_i8_single(
    int8_t *restrict y, const int8_t *restrict x, const sequential_conv_channels_last_i8_i8_single_t *call);

typedef struct {
    sequential_conv_channels_last_i8_i8_single_t plain;
    int32_t panels; /* where the weights lie in the order of vectors */
} sequential_conv_bytes_i8_i8_single_t;

/* The same for codes and weights of 8 bits: many pixels and channels at a time where the machine has vectors. */
void sequential_conv_bytes_i8_i8_single(
    int8_t *restrict y, const int8_t *restrict x, const sequential_conv_bytes_i8_i8_single_t *call);

typedef struct {
    int32_t x_first, y_first;        /* elements */
    int32_t outer, inner;            /* what is moved: all axes but the last, and along the last */
    int32_t rank;                    /* of the outer axes */
    int32_t size[8];
    int32_t x_step[8], x_next; /* distances of neighbours along each axis */
    int32_t y_step[8], y_next;
} sequential_move_i8_t;

/* Codes to other places. */
void sequential_move_i8(
    int8_t *restrict y, const int8_t *restrict x, const sequential_move_i8_t *call);

typedef struct {
    int32_t rows;
    int32_t inputs;
    int32_t outputs;
    const int8_t *weight; /* [outputs][inputs] */
    const int32_t *bias; /* [outputs], less the zero point of x times the sum of the weights */
    sequential_requantize_channels_single_t to;
} sequential_linear_i8_i8_single_t;

/* y[row][o] = requantize(sum of x[row][i] * weight[o][i] + bias[o]). */
void sequential_linear_i8_i8_single(
    int8_t *restrict y, const int8_t *restrict x, const sequential_linear_i8_i8_single_t *call);

typedef sequential_linear_i8_i8_single_t sequential_linear_bytes_i8_i8_single_t;

/* The same for codes and weights of 8 bits: many inputs at a time where the machine has vectors. */
void sequential_linear_bytes_i8_i8_single(
    int8_t *restrict y, const int8_t *restrict x, const sequential_linear_bytes_i8_i8_single_t *call);

#endif
