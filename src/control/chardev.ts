// The character devices of the daemon's command line, as far as a control socket needs them: `--chardev socket,...`, `--chardev stdio,...`,
// and the monitors on them, `--monitor`.

import { connect } from 'node:net'
import { once } from 'node:events'
import { Duplex } from 'node:stream'
import { Busy, InvalidParameter, NotFound, strerror } from '../base/errors.ts'
import { isWellFormed } from '../block/node-options.ts'
import type { Monitor } from './qmp-server.ts'

type Chardev = { readonly backend: 'socket'; readonly path: string; readonly server: boolean } | { readonly backend: 'stdio' }

const OPTIONS: Readonly<Record<Chardev['backend'], ReadonlySet<string>>> = {
  // Whether it waits for its first client is not ours to say: clients come when they come, and there may be many.
  socket: new Set(['id', 'path', 'server', 'wait', 'host', 'port', 'fd', 'reconnect']),
  stdio: new Set(['id', 'signal']),
}
const SWITCHES = new Set(['server', 'wait', 'signal'])

export class Chardevs {
  readonly #byId = new Map<string, Chardev>()
  readonly #used = new Set<string>()

  /** `--chardev`, in the form of QEMU's older options (util/qemu-option.c): a word without a value is a switch. @throws InvalidParameter */
  add(text: string) {
    const { backend, options } = split(text)
    const id = options.get('id')
    if (id === undefined) throw new InvalidParameter('chardev: no id specified')
    if (!isWellFormed(id)) throw new InvalidParameter("Parameter 'id' expects an identifier")
    if (backend === undefined) throw new InvalidParameter(`chardev: "${id}" missing backend`)
    if (backend !== 'socket' && backend !== 'stdio') throw new InvalidParameter(`'${backend}' is not a valid char driver name`)
    for (const [name, value] of options) {
      if (!OPTIONS[backend].has(name)) throw new InvalidParameter(`Invalid parameter '${name}'`)
      if (SWITCHES.has(name) && !['on', 'off'].includes(value))
        throw new InvalidParameter(`Parameter '${name}' expects 'on' or 'off'`)
    }
    if (this.#byId.has(id)) throw new InvalidParameter(`Chardev '${id}' already exists`)
    this.#byId.set(id, backend === 'stdio' ? { backend } : socketOf(options))
  }

  /** `--monitor`: what is to be served there. @throws NotFound, Busy, and InvalidParameter where nobody listens at the socket of a client */
  async use(id: string, pretty: boolean): Promise<Monitor> {
    const chardev = this.#byId.get(id)
    if (!chardev) throw new NotFound(`chardev "${id}" not found`)
    if (this.#used.has(id)) throw new Busy(`Device '${id}' is in use`)
    this.#used.add(id)
    if (chardev.backend === 'stdio') return { stream: stdio(), pretty }
    return chardev.server ? { path: chardev.path, pretty } : { stream: await connected(chardev.path), pretty }
  }
}

/** Who connects may do all that the daemon's owner may, so none is opened that keeps nobody out. */
const NO_TCP =
  "a control socket on TCP would be open to everybody who reaches it: give a 'path', and let ssh -L or socat forward to it"

function refuse(wrong: boolean, message: string) {
  if (wrong) throw new InvalidParameter(message)
}

function socketOf(options: ReadonlyMap<string, string>): Chardev {
  const path = options.get('path')
  const isServer = options.get('server') === 'on'
  refuse(
    ['path', 'fd', 'host'].filter(name => options.has(name)).length > 1,
    "None or one of 'path', 'fd' or 'host' option required.",
  )
  refuse(isServer && options.has('reconnect'), "'reconnect' option is incompatible with socket in server listen mode")
  refuse(!isServer && options.has('wait'), "'wait' option is incompatible with socket in client connect mode")
  refuse(options.has('host') && !options.has('port'), 'chardev: socket: no port given')
  refuse(options.has('host') || options.has('port'), NO_TCP)
  for (const name of ['fd', 'reconnect']) refuse(options.has(name), `Invalid parameter '${name}'`)
  if (path === undefined) throw new InvalidParameter("a control socket needs a path: 'socket,id=ID,path=PATH,server=on,wait=off'")
  return { backend: 'socket', path, server: isServer }
}

/** Standard input and output as one stream, whose end leaves both open: they are the program's. */
function stdio(): Duplex {
  const { stdin, stdout } = process
  const stream: Duplex = new Duplex({
    read: () => void stdin.resume(),
    write: (chunk: Buffer, _, done) => void stdout.write(chunk, done),
    destroy(error, done) {
      stdin.pause()
      done(error)
    },
  })
  stdin.on('data', chunk => stream.push(chunk) || stdin.pause())
  stdin.once('end', () => stream.push(null))
  return stream
}

async function connected(path: string): Promise<Duplex> {
  const socket = connect(path)
  try {
    await once(socket, 'connect')
  } catch (error) {
    throw new InvalidParameter(`Failed to connect to '${path}': ${strerror(error)}`, { cause: error })
  }
  return socket
}

/** A comma in a value is written twice. */
function split(text: string) {
  const parts = text.split(/(?<!,),(?!,)/).map(part => part.replaceAll(',,', ','))
  const options = new Map<string, string>()
  let backend: string | undefined
  for (const [index, part] of parts.entries()) {
    const equals = part.indexOf('=')
    if (equals >= 0) options.set(part.slice(0, equals), part.slice(equals + 1))
    else if (index === 0) backend = part
    else if (part.startsWith('no')) options.set(part.slice(2), 'off')
    else options.set(part, 'on')
  }
  if (options.has('backend')) {
    backend = options.get('backend')
    options.delete('backend')
  }
  return { backend, options }
}
