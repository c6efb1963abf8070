// Listening sockets that systemd holds for us (sd_listen_fds(3)): while the daemon restarts, clients wait in their queues.
//
// Each goes to the place of the configuration with the same address, which is looked up in /proc.

import { fstatSync, readFileSync } from 'node:fs'
import { strerror } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import { activatedSockets } from './inherited.ts'

export interface InheritedSocket {
  readonly fd: number
  /** A path, @NAME for an abstract one, or an address and a port, as `addressOf` writes them. */
  readonly address: string | undefined
}

export class InheritedSockets {
  constructor(private readonly sockets: InheritedSocket[]) {}

  /** Takes the environment's word, once. @throws InvalidParameter */
  static fromEnvironment(log: Log): InheritedSockets {
    const found: InheritedSocket[] = []
    for (const fd of activatedSockets()) {
      try {
        found.push({ fd, address: addressOfSocket(fd) })
      } catch (error) {
        log.warn('a socket that was passed cannot be used', { fd, err: strerror(error) })
      }
    }
    return new InheritedSockets(found)
  }

  /** The one that listens at this place, once. */
  take(place: { readonly unix: string } | { readonly host: string; readonly port: number }): number | undefined {
    const wanted = 'unix' in place ? place.unix.replace(/^\0/, '@') : addressOf(place.host, place.port)
    const index = this.sockets.findIndex(({ address }) => address !== undefined && address === wanted)
    return index < 0 ? undefined : this.sockets.splice(index, 1)[0]!.fd
  }

  /** Those that nobody has taken: where they lead nobody answers. */
  get left(): readonly InheritedSocket[] {
    return this.sockets
  }
}

/** The lines of a table of the kernel, each by its columns. */
const fieldsOf = (file: string) =>
  readFileSync(`/proc/net/${file}`, 'utf8')
    .split('\n')
    .slice(1)
    .map(line => line.trim().split(/ +/))

function addressOfSocket(fd: number): string | undefined {
  const { ino } = fstatSync(fd)
  // Num RefCount Protocol Flags Type St Inode Path
  const unix = fieldsOf('unix').find(fields => fields[6] === String(ino))
  if (unix) return unix.slice(7).join(' ')
  for (const file of ['tcp', 'tcp6']) {
    // sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
    const found = fieldsOf(file).find(fields => fields[9] === String(ino))
    if (found) return addressOf(...localAddress(found[1]!))
  }
  return undefined
}

/** Words of 32 bits as this machine has them, in hexadecimal digits. */
function localAddress(text: string): [host: string, port: number] {
  const [hex = '', port = ''] = text.split(':')
  const bytes = Buffer.from(hex, 'hex').swap32()
  if (bytes.length === 4) return [bytes.join('.'), parseInt(port, 16)]
  const groups = Array.from({ length: 8 }, (_, index) => bytes.readUInt16BE(index * 2).toString(16))
  return [groups.join(':'), parseInt(port, 16)]
}

/** The same text for the same address, however it is written. */
function addressOf(host: string, port: number): string {
  const plain = host === 'localhost' ? '127.0.0.1' : host
  const name = plain.includes(':') ? new URL(`http://[${plain}]/`).hostname : plain
  return `${name} ${port}`
}
