// A real S3 store for tests: Ceph's radosgw with one monitor and one OSD, on loopback, without cephx, containers or systemd.
//
// The daemons stay in this process's group, and end with it. `kill` is as a power cut for them; `start` brings them back with the
// data that they had, where these are on disk.

import { spawn, type ChildProcess } from 'node:child_process'
import { mkdirSync, openSync, closeSync, writeFileSync } from 'node:fs'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { randomUUID } from 'node:crypto'
import { attempt, missing, run } from './tools.ts'

export const cephMissing = missing('ceph', 'ceph-mon', 'ceph-osd', 'radosgw', 'radosgw-admin')

export const ACCESS_KEY = 'ACCESSKEYOFTESTS'
export const SECRET_KEY = 'the/secret+of=tests'
const START_MS = 60_000

type Daemon = 'mon' | 'osd' | 'rgw'

export interface CephOptions {
  /** `true`: the data outlive the daemons; else they are in memory, which is faster. */
  readonly onDisk?: boolean
  /** A file with a key and a certificate: https is served too. */
  readonly tlsPem?: string
}

export class Ceph implements AsyncDisposable {
  readonly #daemons = new Map<Daemon, ChildProcess>()
  #parts = new AsyncDisposableStack()

  private constructor(
    private readonly folder: string,
    readonly port: number,
    private readonly tlsPort: number,
  ) {}

  /** Ready to serve S3. */
  static async launch({ onDisk = false, tlsPem }: CephOptions = {}): Promise<Ceph> {
    await using undo = new AsyncDisposableStack()
    const folder = await mkdtemp(join(tmpdir(), 'stillpoint-ceph-'))
    undo.defer(() => rm(folder, { recursive: true }))
    const [port, monV2, monV1, tls] = await freePorts(4)
    const ceph = new Ceph(folder, port!, tls!)
    undo.defer(() => ceph.kill())
    const conf = {
      port: port!,
      mon: [monV2!, monV1!] as const,
      ...(tlsPem !== undefined && { tls: { port: tls!, pem: tlsPem } }),
    }
    await ceph.#prepare(configuration(folder, onDisk ? 'bluestore' : 'memstore', conf))
    await ceph.start()
    await ceph.addUser('tests', ACCESS_KEY, SECRET_KEY)
    ceph.#parts = undo.move()
    return ceph
  }

  get endpoint() {
    return `http://127.0.0.1:${this.port}`
  }

  get tlsEndpoint() {
    return `https://localhost:${this.tlsPort}`
  }

  async addUser(uid: string, accessKey: string, secretKey: string) {
    const keys = ['--access-key', accessKey, '--secret-key', secretKey, '--max-buckets', '1000']
    await run('radosgw-admin', [...this.#as('client.rgw'), 'user', 'create', '--uid', uid, '--display-name', uid, ...keys], {
      timeoutMs: START_MS,
    })
  }

  /** Starts what does not run, and waits until S3 is served. */
  async start(daemons: readonly Daemon[] = ['mon', 'osd', 'rgw']) {
    for (const daemon of daemons) {
      const out = openSync(join(this.folder, `${daemon}.out`), 'a')
      const [command, who] = { mon: ['ceph-mon', 'mon.a'], osd: ['ceph-osd', 'osd.0'], rgw: ['radosgw', 'client.rgw'] }[daemon]
      const child = spawn(command!, [...this.#as(who!), '-f'], { stdio: ['ignore', out, out] })
      child.unref() // a test file that has done its tests is to end
      this.#daemons.set(daemon, child)
      closeSync(out)
    }
    for (const end = Date.now() + START_MS; ; await sleep(50)) {
      if (await this.#serves()) return
      if (Date.now() > end || [...this.#daemons.values()].some(hasEnded))
        throw new Error(`radosgw did not start:\n${await this.#told()}`)
    }
  }

  /** At once, whatever they are doing. */
  async kill(daemons: readonly Daemon[] = ['rgw', 'osd', 'mon']) {
    for (const daemon of daemons) {
      const child = this.#daemons.get(daemon)
      this.#daemons.delete(daemon)
      if (!child || hasEnded(child)) continue
      child.ref()
      const gone = new Promise(resolve => child.once('exit', resolve))
      child.kill('SIGKILL')
      await gone
    }
  }

  async [Symbol.asyncDispose]() {
    await this.#parts.disposeAsync()
  }

  #as(name: string) {
    return ['-c', join(this.folder, 'ceph.conf'), '-n', name]
  }

  async #prepare(configuration: string) {
    const at = (name: string) => join(this.folder, name)
    for (const name of ['mon', 'osd', 'rgw', 'run']) mkdirSync(at(name))
    writeFileSync(at('ceph.conf'), configuration)
    const [, fsid] = /^fsid = (.*)$/m.exec(configuration)!
    const [, addresses] = /^mon host = (.*)$/m.exec(configuration)!
    await run('monmaptool', ['--create', '--clobber', '--fsid', fsid!, '--addv', 'a', addresses!, at('monmap')])
    await run('ceph-mon', [...this.#as('mon.a'), '--mkfs', '--monmap', at('monmap')])
    await this.#startMonitor()
    const osd = randomUUID()
    await run('ceph', ['-c', at('ceph.conf'), '--connect-timeout', '30', 'osd', 'new', osd, '0'], { timeoutMs: START_MS })
    await run('ceph-osd', [...this.#as('osd.0'), '--mkfs', '--osd-uuid', osd], { timeoutMs: START_MS })
    await this.kill(['mon'])
  }

  async #startMonitor() {
    this.#daemons.set('mon', spawn('ceph-mon', [...this.#as('mon.a'), '-f'], { stdio: 'ignore' }))
  }

  async #serves() {
    try {
      return (await fetch(this.endpoint, { signal: AbortSignal.timeout(5000) })).status === 200
    } catch (error) {
      if (error instanceof TypeError || (error as Error).name === 'TimeoutError') return false
      throw error
    }
  }

  async #told() {
    const { stdout } = await attempt('tail', ['-n', '20', ...['mon', 'osd', 'rgw'].map(name => join(this.folder, `${name}.out`))])
    return stdout + (await readFile(join(this.folder, 'ceph.conf'), 'utf8'))
  }
}

const hasEnded = ({ exitCode, signalCode }: ChildProcess) => exitCode !== null || signalCode !== null

/** Ports that nobody has at the moment. */
async function freePorts(count: number) {
  const servers = Array.from({ length: count }, () => net.createServer())
  const ports = await Promise.all(
    servers.map(
      server =>
        new Promise<number>(resolve => server.listen(0, '127.0.0.1', () => resolve((server.address() as net.AddressInfo).port))),
    ),
  )
  await Promise.all(servers.map(server => new Promise(resolve => server.close(resolve))))
  return ports
}

interface Ports {
  readonly port: number
  readonly mon: readonly [number, number]
  readonly tls?: { readonly port: number; readonly pem: string }
}

const configuration = (folder: string, store: string, { port, mon, tls }: Ports) => `[global]
fsid = ${randomUUID()}
mon initial members = a
mon host = [v2:127.0.0.1:${mon[0]},v1:127.0.0.1:${mon[1]}]
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = true
public network = 127.0.0.1/32
cluster network = 127.0.0.1/32
ms bind ipv6 = false
ms cluster mode = crc
ms service mode = crc
ms client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
ms mon client mode = crc
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd pool default read lease ratio = .1
mon allow pool size one = true
mon max pg per osd = 1000
paxos propose interval = .05
paxos min wait = .01
mon data avail warn = 2
mon data avail crit = 1
run dir = ${folder}/run
admin socket = ${folder}/run/$cluster-$name.asok
pid file =
log file = ${folder}/$name.log
log to syslog = false
err to syslog = false
debug mon = 0/0
debug ms = 0/0
debug osd = 0/0
debug rgw = 0/0
[mon]
mon data = ${folder}/mon/a
mon cluster log file = ${folder}/cluster.log
[osd]
osd data = ${folder}/osd
osd objectstore = ${store}
memstore device bytes = ${2 ** 31}
bluestore block size = ${4 * 2 ** 30}
bluestore block create = true
bluestore cache autotune = false
bluestore cache size = ${2 ** 27}
osd class load list = *
osd class default list = *
osd max scrubs = 0
[client]
rgw data = ${folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:${port}${tls ? ` ssl_endpoint=127.0.0.1:${tls.port} ssl_certificate=${tls.pem}` : ''}
rgw dns name = localhost
rgw enable usage log = false
rgw enable ops log = false
rgw thread pool size = 64
rgw override bucket index max shards = 1
rgw dynamic resharding = false
rgw crypt require ssl = false
rgw s3 auth use keystone = false
`
