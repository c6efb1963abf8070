// Whether bytes are all zero.

/** The first is zero, and every other equals the one before it; one memcmp, which ends at the first difference. */
export const isZero = (bytes: Buffer) => bytes.length === 0 || (bytes[0] === 0 && bytes.subarray(1).equals(bytes.subarray(0, -1)))
