// Where nbd-server-start listens: QMP's SocketAddressLegacy, as far as NBD clients need it, and SocketAddress for the command line.

import { z } from 'zod'
import { InvalidParameter } from '../base/errors.ts'
import type { ListenAddress } from '../nbd-server/listening.ts'

const inet = z.strictObject({
  host: z.string(),
  port: z.string(),
  numeric: z.boolean().optional().describe('Accepted; a number is taken for one anyway'),
})

const unix = z.strictObject({
  path: z.string(),
  abstract: z.boolean().optional().describe("A name in Linux's abstract namespace, not a file"),
})

export const socketAddressLegacy = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('inet'), data: inet }),
  z.strictObject({ type: z.literal('unix'), data: unix }),
])

/** The same, without a level of its own for what belongs to the type. */
export const socketAddress = z
  .discriminatedUnion('type', [
    z.strictObject({ type: z.literal('inet'), ...inet.shape }),
    z.strictObject({ type: z.literal('unix'), ...unix.shape }),
  ])
  .transform(address => (address.type === 'inet' ? { type: address.type, data: address } : { type: address.type, data: address }))

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
