// Where nbd-server-start listens: QMP's SocketAddressLegacy, as far as NBD clients need it, and SocketAddress for the command line.

import { fstatSync } from 'node:fs'
import { z } from 'zod'
import { InvalidParameter, NotSupported } from '../base/errors.ts'
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

const vsock = z.strictObject({ cid: z.string(), port: z.string() }).describe('Refused: Node.js has no such sockets')

const fd = z
  .strictObject({ str: z.string().describe('Its number') })
  .describe('A listening socket that the daemon was started with: on the command line only')

export const socketAddressLegacy = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('inet'), data: inet }),
  z.strictObject({ type: z.literal('unix'), data: unix }),
  z.strictObject({ type: z.literal('vsock'), data: vsock }),
  z.strictObject({ type: z.literal('fd'), data: fd }),
])

type Address = z.output<typeof socketAddressLegacy>

/** The same, without a level of its own for what belongs to the type. */
export const socketAddress = z
  .discriminatedUnion('type', [
    z.strictObject({ type: z.literal('inet'), ...inet.shape }),
    z.strictObject({ type: z.literal('unix'), ...unix.shape }),
    z.strictObject({ type: z.literal('vsock'), ...vsock.shape }),
    z.strictObject({ type: z.literal('fd'), ...fd.shape }),
  ])
  .transform(address => ({ type: address.type, data: address }) as Address)

/** `inherited`: file descriptors are those that the program was started with; else names that clients have given to some. @throws InvalidParameter */
export function listenAddressOf(address: Address, { inherited = false } = {}): ListenAddress {
  switch (address.type) {
    case 'unix': {
      const { path, abstract = false } = address.data
      return { unix: abstract ? `\0${path}` : path }
    }
    case 'inet':
      return inetAddress(address.data)
    case 'vsock':
      throw new NotSupported(
        "Node.js has no vsock sockets; listen at a unix socket, and 'socat VSOCK-LISTEN:PORT,fork UNIX-CONNECT:PATH' brings guests there",
      )
    case 'fd':
      if (!inherited)
        throw new NotSupported(
          'no command hands a file descriptor over; one that the daemon was started with is named by --nbd-server addr.type=fd,addr.str=NUMBER',
        )
      return { fd: inheritedSocket(address.data.str) }
  }
}

function inetAddress({ host, port }: z.output<typeof inet>): ListenAddress {
  const number = Number(port)
  if (!/^\d+$/.test(port) || number > 65535) throw new InvalidParameter(`'${port}' is no port; a number from 0 to 65535 is`)
  // As to QEMU, no host means all of them.
  return { host: host === '' ? '::' : host, port: number }
}

function inheritedSocket(text: string): number {
  if (!/^\d+$/.test(text)) throw new InvalidParameter(`Unable to parse FD number ${text}`)
  const number = Number(text)
  if (!isSocket(number)) throw new InvalidParameter(`File descriptor '${text}' is not a socket`)
  return number
}

function isSocket(fd: number) {
  try {
    return fstatSync(fd).isSocket()
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EBADF') throw error
    return false
  }
}
