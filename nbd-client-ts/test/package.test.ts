// The package as npm packs it: what is in it, that it stands alone, and that TypeScript finds its types.

import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { isBuiltin } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { folder, missing, run } from './helpers/servers.ts'

const packageRoot = fileURLToPath(new URL('../../', import.meta.url))
const modules = join(packageRoot, '../node_modules')

const CONSUMER = `import { NbdClient, NbdReplyError, parseNbdUri, type NbdExtent } from 'nbd-client-ts'
import { Allocation, request } from 'nbd-client-ts/protocol'
import { struct, u32 } from 'nbd-client-ts/struct'

export async function use(client: NbdClient): Promise<number> {
  const bytes: Buffer = await client.read(0, 4)
  // @ts-expect-error an offset is a number
  await client.read('0', 4)
  const extents: NbdExtent[] = await Array.fromAsync(client.extents())
  return bytes.length + extents.length + Allocation.ZERO + request.size + struct('one', 4, { a: u32 }).size
}
console.log(parseNbdUri('nbd://host/disk').exportName, new Set([NbdClient, NbdReplyError]).size)
`

t.test('what is packed stands alone: its files, its imports, its types', { skip: missing('npm', 'tar') }, async t => {
  await using stack = new AsyncDisposableStack()
  const at = folder(stack)
  const [here, installed] = [(name: string) => join(at, name), join(at, 'node_modules/nbd-client-ts')]
  mkdirSync(installed, { recursive: true })
  run('sh', '-c', 'cd "$1" && npm pack --silent --offline --ignore-scripts --pack-destination "$2"', '-', packageRoot, at)
  run('sh', '-c', 'tar -xzf "$1"/*.tgz -C "$2" --strip-components=1', '-', at, installed)

  const files = readdirSync(installed, { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile())
    .map(entry => join(entry.parentPath, entry.name).slice(installed.length + 1))
  const sources = readdirSync(join(packageRoot, 'src')).map(name => name.replace(/\.ts$/, ''))
  const wanted = sources.flatMap(name => [`dist/src/${name}.js`, `dist/src/${name}.d.ts`])
  t.same(files.toSorted(), [...wanted, 'LICENSE', 'README.md', 'package.json'].toSorted())

  const known = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8')) as Record<string, unknown>
  t.match(known, { license: 'Apache-2.0', type: 'module', engines: { node: /^>=24/ } })
  t.same([known['dependencies'], known['private']], [undefined, undefined])
  for (const name of files.filter(name => name.endsWith('.js')))
    for (const [, from] of readFileSync(join(installed, name), 'utf8').matchAll(/^(?:import|export)\b.*? from '([^']+)'/gm))
      t.ok(from!.startsWith('./') ? files.includes(join('dist/src', from!)) : isBuiltin(from!), `${name}: ${from}`)

  writeFileSync(here('use.mts'), CONSUMER)
  const compilerOptions = { module: 'nodenext', target: 'es2024', lib: ['esnext'], strict: true, types: ['node'] }
  writeFileSync(here('tsconfig.json'), JSON.stringify({ compilerOptions, files: ['use.mts'] }))
  for (const name of ['@types', 'undici-types']) symlinkSync(join(modules, name), here(`node_modules/${name}`))
  const tsc = join(modules, 'typescript-native/bin/tsc')
  const { status, stdout } = spawnSync(process.execPath, [tsc, '-p', at], { encoding: 'utf8' })
  t.equal(status, 0, stdout)
  t.equal(run(process.execPath, here('use.mjs')), 'disk 2\n')
})
