/* sequential: an integer program of 3 instructions. Written by qcompiler.

   One call for each instruction, in order. Shapes are written N, C, H, W; memory holds images as NHWC. */
#include "sequential.h"

#include "kernels.h"
#include "weights.h"

#if defined(_MSC_VER)
#define ALIGNED __declspec(align(16))
#elif defined(__GNUC__)
#define ALIGNED __attribute__((aligned(16)))
#else
#define ALIGNED /* kernels need no more than elements do */
#endif

/* With SEQUENTIAL_TRACE somebody is told of the result of every step. */
#ifdef SEQUENTIAL_TRACE
void sequential_trace(int32_t step, void *codes);
#define TRACE(step, codes) sequential_trace(step, codes)
#else
#define TRACE(step, codes) ((void)(codes))
#endif

static ALIGNED int8_t arena[96];

/* Where tensors lie in the arena. */
/* %input.q i8[1, 2, 4, 4] = 0.0197586 (q - 18) */
static int8_t *const t_input_q = (int8_t *)arena + 0;
/* %1.q i8[1, 3, 4, 4] = 0.00574252 (q + 128) */
static int8_t *const t_m_1_q = (int8_t *)arena + 48;
/* %2 i8[1, 48] = 0.00574252 (q + 128) */
static int8_t *const t_m_2 = (int8_t *)arena + 0;
/* %3.q i8[1, 2] = 0.00205776 (q - 101) */
static int8_t *const t_m_3_q = (int8_t *)arena + 80;

/* What the calls take. */
static const sequential_conv_bytes_i8_i8_single_t c_m_1_q = {
    .panels = 0,
    .plain = {
        .batch = 1, .height = 4, .width = 4, .channels = 2, .out_height = 4, .out_width = 4, .stride_y = 1,
        .stride_x = 1, .dilation_y = 1, .dilation_x = 1, .top = 1, .left = 1, .out_channels = 3, .kernel_height = 3,
        .kernel_width = 3, .groups = 1, .weight = sequential_m_0_weight_q, .bias = sequential_m_1_q_bias,
        .outside = sequential_m_1_q_outside,
        .to = {
            .multiplier = sequential_m_1_q_multiplier, .exponent = sequential_m_1_q_exponent, .next = 0,
            .zero_point = -128, .low = -128, .high = 127, .lows = 0, .highs = 0,
        },
    },
};

static const sequential_move_i8_t c_m_2 = {
    .x_first = 0, .y_first = 0, .outer = 3, .inner = 16, .rank = 1, .size = {3}, .x_step = {1}, .x_next = 3,
    .y_step = {16}, .y_next = 1,
};

static const sequential_linear_bytes_i8_i8_single_t c_m_3_q = {
    .rows = 1, .inputs = 48, .outputs = 2, .weight = sequential_m_3_weight_q, .bias = sequential_m_3_q_bias,
    .to = {
        .multiplier = sequential_m_3_q_multiplier, .exponent = sequential_m_3_q_exponent, .next = 0, .zero_point = 101,
        .low = -128, .high = 127, .lows = 0, .highs = 0,
    },
};

void sequential_run(void)
{
    /* 0. int_conv2d: %input.q i8[1, 2, 4, 4] = 0.0197586 (q - 18)
       -> %1.q i8[1, 3, 4, 4] = 0.00574252 (q + 128); weight i8[3, 2, 3, 3]; multiplier 0.0063483 */
    sequential_conv_bytes_i8_i8_single(t_m_1_q, t_input_q, &c_m_1_q);
    TRACE(0, t_m_1_q);

    /* 1. reshape: %1.q i8[1, 3, 4, 4] = 0.00574252 (q + 128) -> %2 i8[1, 48] = 0.00574252 (q + 128) */
    sequential_move_i8(t_m_2, t_m_1_q, &c_m_2);
    TRACE(1, t_m_2);

    /* 2. int_linear: %2 i8[1, 48] = 0.00574252 (q + 128) -> %3.q i8[1, 2] = 0.00205776 (q - 101); weight i8[2, 48]
      ; multiplier 0.0031638 */
    sequential_linear_bytes_i8_i8_single(t_m_3_q, t_m_2, &c_m_3_q);
    TRACE(2, t_m_3_q);
}

int8_t *sequential_input_0(void)
{
    return t_input_q;
}

const int8_t *sequential_output_0(void)
{
    return t_m_3_q;
}
