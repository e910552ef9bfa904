/* Constants of sequential. Written by qcompiler. */
#include "weights.h"

/* what %1.q reads outside of its input */
const int8_t sequential_m_1_q_outside[2] = {
    18,18,
};

/* [out][height][width][in] weights of %1.q */
const int8_t sequential_m_0_weight_q[54] = {
    -1,34,69,-39,-105,-25,-94,-122,-49,-85,34,-53,-3,5,101,51,-11,77,-87,-119,-56,-80,
    46,-32,106,-50,-26,110,96,-83,-21,-59,14,-89,116,-120,-75,-66,110,81,57,75,62,-57,
    7,-5,-65,82,22,127,-119,51,-92,17,
};

/* bias with the zero point of the input, of %1.q */
const int32_t sequential_m_1_q_bias[3] = {
    8223,2205,-2611,
};

/* multipliers of %1.q */
const int32_t sequential_m_1_q_multiplier[1] = {
    1745008699,
};

/* exponents of %1.q */
const int8_t sequential_m_1_q_exponent[1] = {
    -7,
};

/* [2, 48] weights of %3.q */
const int8_t sequential_m_3_weight_q[96] = {
    -99,-88,-66,58,51,-75,38,70,-16,5,29,79,122,-98,-47,50,105,111,112,25,-111,12,
    -80,-119,113,97,-127,24,-21,-21,-58,49,-75,47,64,91,48,-126,-83,64,27,-99,-73,120,
    86,-56,-32,-121,-2,-96,-98,-7,19,-52,76,-77,116,87,-107,-32,6,19,30,50,8,-62,
    60,-122,-75,-32,-62,-45,-104,-27,27,-83,-7,91,-13,4,-11,26,81,121,81,121,-9,-114,
    -60,87,-1,-63,-98,-119,-107,-26,
};

/* bias with the zero point of the input, of %3.q */
const int32_t sequential_m_3_q_bias[2] = {
    12926,-64942,
};

/* multipliers of %3.q */
const int32_t sequential_m_3_q_multiplier[1] = {
    1739318121,
};

/* exponents of %3.q */
const int8_t sequential_m_3_q_exponent[1] = {
    -8,
};
