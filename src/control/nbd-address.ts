// Where nbd-server-start listens: QMP's SocketAddressLegacy, as far as NBD clients need it.

import { z } from 'zod'
import { InvalidParameter } from '../base/errors.ts'
import type { ListenAddress } from '../nbd-server/listening.ts'

export const socketAddressLegacy = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('inet'),
    data: z.strictObject({
      host: z.string(),
      port: z.string(),
      numeric: z.boolean().optional().describe('Accepted; a number is taken for one anyway'),
    }),
  }),
  z.strictObject({
    type: z.literal('unix'),
    data: z.strictObject({
      path: z.string(),
      abstract: z.boolean().optional().describe("A name in Linux's abstract namespace, not a file"),
    }),
  }),
])

/** @throws InvalidParameter */
export function listenAddressOf(address: z.output<typeof socketAddressLegacy>): ListenAddress {
  if (address.type === 'unix') {
    const { path, abstract = false } = address.data
    return { unix: abstract ? `\0${path}` : path }
  }
  const { host, port } = address.data
  const number = Number(port)
  if (!/^\d+$/.test(port) || number > 65535) throw new InvalidParameter(`'${port}' is no port; a number from 0 to 65535 is`)
  // As to QEMU, no host means all of them.
  return { host: host === '' ? '::' : host, port: number }
}
