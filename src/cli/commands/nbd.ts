// stillpoint nbd: images over NBD without a daemon, called as qemu-nbd is; and what another server exports.

import { InvalidArgumentError, Option } from 'commander'
import { seconds } from '../arguments.ts'
import { verb } from '../define.ts'
import { Misuse } from '../failure.ts'
import { imageOptsOption, list } from './image/options.ts'

export interface NbdOptions {
  readonly list?: boolean
  readonly port?: number
  readonly bind?: string
  readonly socket?: string
  readonly socketMode?: number
  readonly single?: boolean
  readonly shared: number
  readonly persistent?: boolean
  readonly exportName?: readonly string[]
  readonly description?: readonly string[]
  readonly offset?: string
  readonly allocationDepth?: boolean
  readonly bitmap?: readonly string[]
  readonly object?: readonly string[]
  readonly tlsCreds?: string
  readonly tlsAuthz?: string
  readonly tlsHostname?: string
  readonly tlsOptional?: readonly string[]
  readonly allow?: readonly string[]
  readonly keepAlive?: number
  readonly idle?: number
  readonly speed?: string
  readonly singleWriter?: boolean
  readonly format?: string
  readonly readOnly?: boolean
  readonly snapshot?: boolean
  readonly nocache?: boolean
  readonly cache: 'writeback' | 'writethrough' | 'unsafe' | 'none' | 'directsync'
  readonly discard?: 'ignore' | 'off' | 'unmap' | 'on'
  readonly detectZeroes?: 'off' | 'on' | 'unmap'
  readonly imageOpts?: boolean
  readonly fork?: boolean
  readonly pidFile?: string
  readonly verbose?: boolean
  readonly connect?: string
  readonly disconnect?: string
  readonly loadSnapshot?: string
  readonly selinuxLabel?: string
}

/** Options of qemu-nbd's that are not ours, and what to do instead. */
const foreign = {
  connect: "-c: the kernel's own driver is connected by nbd-client: serve with -k or -p, then nbd-client -unix SOCKET DEVICE",
  disconnect: '-d: a device is disconnected by nbd-client -d DEVICE',
  loadSnapshot:
    '-l: internal snapshots are not served; qemu-img convert -l SNAPSHOT copies one into an image of its own, which is',
  selinuxLabel:
    "--selinux-label: a socket has the label of the program that makes it; say it in the program's domain, or use chcon",
} as const

const whole = (least: number, most: number) => (text: string) => {
  const value = Number(text)
  if (!/^\d+$/.test(text) || value < least || value > most)
    throw new InvalidArgumentError(`It must be a whole number from ${least} to ${most}`)
  return value
}

const octal = (text: string) => {
  if (!/^0?[0-7]{3}$/.test(text)) throw new InvalidArgumentError('It must be three octal digits, such as 660')
  return Number.parseInt(text, 8)
}

export const nbd = verb<{ files?: readonly string[] }, NbdOptions>({
  name: 'nbd',
  summary: 'serve images over NBD without a daemon, or list what another server exports',
  details:
    'The options are those of qemu-nbd. As there, one client is served and the program ends when it leaves, unless -e and -t say otherwise. Other than there it listens at 127.0.0.1 unless -b lets others in, several images may be served at once, and an image that guests write needs its format said (-f). Where systemd hands over sockets it listens at those. SIGTERM and ^C end it in an orderly way; SIGHUP reads certificates and keys again.',
  arguments: { '[files...]': 'the images; with -L the server, as a URI, where it is not named by -k or -p' },
  options: [
    new Option('-p, --port <port>', 'the port to listen at (default: 10809)').argParser(whole(0, 65535)),
    new Option('-b, --bind <address>', 'the address to listen at; 0.0.0.0 and :: let anybody in (default: 127.0.0.1)'),
    new Option('-k, --socket <path>', 'the unix socket to listen at; @NAME is one in the abstract namespace'),
    new Option('--socket-mode <mode>', "who may open the socket's file (default: 600)").argParser(octal),
    new Option('--single', 'serve one client, on standard input and output: a socket or pipes').conflicts([
      'port',
      'bind',
      'socket',
      'persistent',
      'fork',
    ]),
    new Option('-e, --shared <number>', 'how many clients at once; more wait; 0: no limit')
      .argParser(whole(0, 2 ** 31 - 1))
      .default(1),
    new Option('-t, --persistent', 'go on when the last client has left'),
    new Option(
      '-x, --export-name <name>',
      "the export's name, for several images one each (default: '', or the files' names)",
    ).argParser(list),
    new Option('-D, --description <text>', 'what people who list exports are told, for several images one each').argParser(list),
    new Option('-f, --format <format>', 'format of the images; without it, it is looked at'),
    new Option('-r, --read-only', 'nobody may write'),
    new Option('-s, --snapshot', 'what is written goes to a temporary image over each file, and is lost at the end'),
    new Option('-o, --offset <size>', 'leave out this much of a raw image'),
    new Option('-A, --allocation-depth', 'tell which layer of a chain has what (qemu:allocation-depth)'),
    new Option('-B, --bitmap <name>', 'tell what a dirty bitmap says (qemu:dirty-bitmap:NAME); may be repeated').argParser(list),
    imageOptsOption(),
    new Option(
      '--cache <mode>',
      'writeback, writethrough: each write is on the disk when it is answered; unsafe: flushes do nothing; none: around the page cache; directsync: both',
    )
      .choices(['writeback', 'writethrough', 'unsafe', 'none', 'directsync'])
      .default('writeback'),
    new Option('-n, --nocache', 'as --cache=none').implies({ cache: 'none' }),
    new Option('--aio <mode>', 'accepted: there is one way').choices(['threads', 'native', 'io_uring']),
    new Option('--discard <mode>', 'what becomes of discards; off is ignore, on is unmap (default: unmap)').choices([
      'ignore',
      'off',
      'unmap',
      'on',
    ]),
    new Option('--detect-zeroes <mode>', 'make zeroes that are written holes').choices(['off', 'on', 'unmap']),
    new Option('--object <object>', 'tls-creds-x509,id=ID,dir=DIR,endpoint=server or another of object-add').argParser(list),
    new Option('--tls-creds <id>', 'the object with the certificates or keys: clients must use TLS'),
    new Option('--tls-authz <id>', 'the object that says whose certificates are let in'),
    new Option('--tls-hostname <name>', 'with -L: whose certificate the server must show'),
    new Option(
      '--tls-optional <name>',
      'an export that may be used without TLS too; * and ? are wild; may be repeated',
    ).argParser(list),
    new Option(
      '--allow <rule>',
      'who may use what: address=NETWORK,certificate=NAME,user=NAME,exports=NAME,read-only=on, any of them; may be repeated (default: all may use all)',
    ).argParser(list),
    new Option(
      '--keep-alive <time>',
      'after how long a silence the system asks over TCP whether a client is still there (default: 30s)',
    ).argParser(seconds),
    new Option('--idle <time>', 'close a client that has asked for nothing for so long (default: none)').argParser(seconds),
    new Option('--speed <bytes>', 'a second that a client may read and write, at most, such as 50M (default: no limit)'),
    new Option('--single-writer', 'one client at a time may write; to others the images are read-only until it has gone'),
    new Option('-L, --list', 'list what the server at -k or -p exports, as qemu-nbd does'),
    new Option('--fork', 'go to the background once clients can connect'),
    new Option('--pid-file <path>', 'write the process id there while it runs'),
    new Option('-v, --verbose', 'log what happens'),
    new Option('-T, --trace <options>', 'accepted, and does nothing: see -v'),
    ...['-c, --connect <device>', '-d, --disconnect <device>', '-l, --load-snapshot <name>', '--selinux-label <label>'].map(
      flags => new Option(flags).hideHelp(),
    ),
  ],
  namesDaemon: false,
  examples: [
    ['stillpoint nbd -t -e 0 -f qcow2 -k /run/disk.sock disk.qcow2', 'until it is stopped, for any number of clients'],
    [
      'stillpoint nbd -r -t -p 10809 -b :: a.raw b.raw',
      'two images by their names, to be read by anybody who can reach the port',
    ],
    ['stillpoint nbd -r -B monday -k /run/disk.sock disk.qcow2', 'what an incremental backup wants: the disk, and what changed'],
    [
      'stillpoint nbd -t -e 0 -b :: --object tls-creds-x509,id=t,endpoint=server,dir=/etc/pki --tls-creds t --allow certificate=vm1 --allow certificate=backup,read-only=on -f raw disk.raw',
      'over TLS, for two clients, of whom one may only read',
    ],
    ['stillpoint nbd -L -k /run/disk.sock', 'what is exported there'],
    [`nbdsh -c 'h.connect_command(["stillpoint", "nbd", "--single", "-f", "raw", "disk.raw"])'`, 'for one client that starts it'],
  ],
  async run({ args: { files = [] }, options, json }) {
    for (const [name, instead] of Object.entries(foreign))
      if (options[name as keyof typeof foreign] !== undefined) throw new Misuse(instead)
    if (options.list) {
      const { listExports } = await import('../nbd/list-exports.ts')
      return listExports(files, options, json)
    }
    if (options.imageOpts && options.format !== undefined) throw new Misuse('--image-opts says the format itself; leave out -f')
    if (options.nocache && options.cache !== 'none') throw new Misuse('-n is --cache=none; choose one of them')
    if (files.length === 0) throw new Misuse('name the image to serve, or -L to list what a server exports')
    if (options.fork && Number(process.env['LISTEN_PID']) === process.pid)
      throw new Misuse('whoever hands over sockets (LISTEN_FDS) runs it in the background; leave out --fork')
    const background = options.fork ? await import('../../base/daemonize.ts') : undefined
    if (background && !background.isInBackground()) return background.startInBackground()
    const { serveImages } = await import('../nbd/serve-images.ts')
    await serveImages(files, options, { json, ready: () => background?.leaveForeground() })
  },
})
