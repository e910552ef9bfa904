/* Constants of sequential. Written by qcompiler. */
#ifndef SEQUENTIAL_WEIGHTS_H
#define SEQUENTIAL_WEIGHTS_H

#include <stdint.h>

extern const int8_t sequential_m_1_q_outside[2]; /* what %1.q reads outside of its input */
extern const int8_t sequential_m_0_weight_q[54]; /* [out][height][width][in] weights of %1.q */
extern const int32_t sequential_m_1_q_bias[3]; /* bias with the zero point of the input, of %1.q */
extern const int32_t sequential_m_1_q_multiplier[1]; /* multipliers of %1.q */
extern const int8_t sequential_m_1_q_exponent[1]; /* exponents of %1.q */
extern const int8_t sequential_m_3_weight_q[96]; /* [2, 48] weights of %3.q */
extern const int32_t sequential_m_3_q_bias[2]; /* bias with the zero point of the input, of %3.q */
extern const int32_t sequential_m_3_q_multiplier[1]; /* multipliers of %3.q */
extern const int8_t sequential_m_3_q_exponent[1]; /* exponents of %3.q */

#endif
