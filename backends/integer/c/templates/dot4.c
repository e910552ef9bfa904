//: over X W ACC
//: body
/* Add the products of n codes with the weights of four output channels to four sums. */
static void ${f}(${ACC} sum[4], const ${X} *x, const ${W} *const w[4], int32_t from, int32_t n)
{
    const ${W} *w0 = w[0] + from, *w1 = w[1] + from, *w2 = w[2] + from, *w3 = w[3] + from;
    ${ACC} s0 = sum[0], s1 = sum[1], s2 = sum[2], s3 = sum[3];
    for (int32_t i = 0; i < n; ++i) {
        const ${ACC} code = x[i];
        s0 += code * w0[i];
        s1 += code * w1[i];
        s2 += code * w2[i];
        s3 += code * w3[i];
    }
    sum[0] = s0;
    sum[1] = s1;
    sum[2] = s2;
    sum[3] = s3;
}
