// The NBD protocol's numbers and records, each written once; the server uses them too.

/** The errors that travel on the wire, by the numbers the protocol gives them. */
export const nbdErrors = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const

export type NbdErrorName = keyof typeof nbdErrors
