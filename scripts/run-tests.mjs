// Runs compiled test files, says in lines that one can read how each went, and ends with "N passed, N failed".
//
// Each file is a program that prints TAP. They are run as they are and not by tap's own runner, which would load its hooks into every
// process that a test starts: the daemon is to be tested as it is.
//
// What is counted is what is named: a test is a t.test() that holds no other, or a file that holds none at all. What fails outside of
// any (an assertion beside subtests, a time-out, an exit code) is a failure of its own. The whole output of each file stays in
// .tap/results/ and the last line in .tap/summary.

import { spawn } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { createWriteStream, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { SourceMap } from 'node:module'
import { availableParallelism } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { Parser } from 'tap-parser'
import { stringify } from 'yaml'

/** For one file. tap ends it in an orderly way at this time; we end it for good somewhat later. */
const TIMEOUT_SECONDS = 480
/** One more than there are processors: daemons that are killed and started, disks that flush and stores that answer are waited for, not worked on. */
const JOBS = Number(process.env.STILLPOINT_TEST_JOBS ?? Math.min(3, availableParallelism() + 1))
const DOMAIN = new URL('tap-domain.mjs', import.meta.url).href
/** Of all that tests leave to chance (test/helpers/seed.ts). */
const SEED = process.env.STILLPOINT_SEED ?? String(randomInt(2 ** 30))

const indent = (text, by) => text.trimEnd().replaceAll(/^(?=.)/gm, by)
const seconds = ms => `${(ms / 1000).toFixed(1)} s`

const sourceMaps = new Map()

function sourceMapOf(file) {
  if (!sourceMaps.has(file)) {
    const map = `${file}.map`
    sourceMaps.set(file, existsSync(map) ? new SourceMap(JSON.parse(readFileSync(map, 'utf8'))) : undefined)
  }
  return sourceMaps.get(file)
}

/**
 * Where it is in the source, for each place in what was compiled. Node would do so itself with --enable-source-maps, and read hundreds of maps
 * in every file that fails nowhere.
 */
const withSources = text =>
  text.replaceAll(/(?:file:\/\/)?([\w./-]*dist\/[\w./-]+\.js):(\d+)(?::(\d+))?/g, (place, file, line, column = '1') => {
    const origin = sourceMapOf(file)?.findOrigin(Number(line), Number(column))
    if (origin?.fileName === undefined) return place
    return `${relative('.', join(dirname(file), origin.fileName))}:${origin.lineNumber}:${origin.columnNumber}`
  })

/** What of a failure's diagnostics helps to find it; all of it is in .tap/results/. */
function relevant({ at, source, generated, test, tapCaught, compare, ...rest }) {
  return { ...(at && { at: `${at.fileName}:${at.lineNumber}:${at.columnNumber}` }), ...rest }
}

/** Counts what a file or a test holds. What it returns is complete when the parser is. */
function watch(parser, path = []) {
  const results = { passed: 0, failures: [], skips: [], subtests: 0, assertions: [] }
  let last
  parser.on('child', child => (last = { name: child.name, results: watch(child, [...path, child.name]) }))
  parser.on('assert', ({ name, ok, skip, todo, diag }) => {
    const inner = last?.name === name ? last.results : undefined
    last = undefined
    const full = [...path, name].join(' > ')
    if (skip || todo) results.skips.push({ name: full, reason: String(skip || todo) })
    else if (inner) add(results, inner, { name: full, ok, diag })
    else if (!ok) results.assertions.push({ name, diag })
  })
  parser.on('complete', () => {
    // A test's own assertions are told with it; those beside subtests have no test.
    if (results.subtests === 0) return
    for (const { name, diag } of results.assertions)
      results.failures.push({ name: [...path, name].join(' > '), details: [{ diag }] })
  })
  return results
}

/** A test ended: adds what it holds, or itself where it holds no other. */
function add(results, inner, { name, ok, diag }) {
  results.subtests++
  results.passed += inner.passed
  results.failures.push(...inner.failures)
  results.skips.push(...inner.skips)
  if (ok && inner.subtests === 0 && inner.skips.length === 0) results.passed++
  if (!ok && inner.failures.length === 0)
    results.failures.push({ name, details: inner.assertions.length > 0 ? inner.assertions : [{ diag }] })
}

const running = new Set()

/** Ends the file and all that it started and left. */
function end(child) {
  try {
    process.kill(-child.pid, 'SIGKILL')
  } catch (error) {
    if (error.code !== 'ESRCH') throw error // nobody is left
  }
}

async function runFile(file) {
  const begun = Date.now()
  const child = spawn(process.execPath, ['--import', DOMAIN, file], {
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true, // a process group of its own
    env: { ...process.env, TAP_TIMEOUT: String(TIMEOUT_SECONDS), STILLPOINT_SEED: SEED },
  })
  running.add(child)
  const saved = `.tap/results/${file}.tap`
  mkdirSync(dirname(saved), { recursive: true })
  const log = createWriteStream(saved)
  const parser = new Parser()
  const complete = new Promise(resolve => parser.on('complete', resolve))
  const results = watch(parser)
  const stderr = []
  child.stdout.pipe(parser)
  child.stdout.pipe(log)
  child.stderr.on('data', data => stderr.push(data))
  const timer = setTimeout(() => end(child), (TIMEOUT_SECONDS + 10) * 1000)
  child.on('exit', () => end(child))
  const [code, signal] = await new Promise(resolve => child.on('close', (...how) => resolve(how)))
  clearTimeout(timer)
  running.delete(child)
  const { ok, count, failures } = await complete

  const total = { passed: 0, failures: [], skips: [], subtests: 0 }
  const broken = failures.filter(({ tapError }) => tapError).map(({ tapError }) => tapError)
  const diag = { 'ended with': signal ?? `exit code ${code}`, assertions: count, ...(broken.length > 0 && { broken }) }
  add(total, results, { name: file, ok: ok && code === 0 && count > 0, diag })
  return { file, ...total, stderr: Buffer.concat(stderr).toString(), ms: Date.now() - begun, saved }
}

function report({ file, passed, failures, skips, stderr, ms, saved }) {
  console.log(`${failures.length > 0 ? 'FAIL' : 'ok  '} ${file}  (${passed} passed, ${seconds(ms)})`)
  for (const { name, reason } of skips) console.log(`     skipped: ${name}${reason === 'true' ? '' : `: ${reason}`}`)
  for (const { name, details } of failures) {
    console.log(`\n     FAILED: ${name}`)
    for (const { name, diag } of details) {
      if (name) console.log(`       ${name}`)
      if (diag) console.log(indent(withSources(stringify(relevant(diag))), '         '))
    }
  }
  if (stderr) console.log(`     on standard error:\n${indent(withSources(stderr), '       ')}`)
  if (failures.length > 0) console.log(`     all of it: ${saved}; alone: scripts/on-node-24 ${file}\n`)
}

console.log(`STILLPOINT_SEED=${SEED}`)
const begun = Date.now()
rmSync('.tap/results', { recursive: true, force: true })
mkdirSync('.tap', { recursive: true })
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.on(signal, () => {
    for (const child of running) end(child)
    process.exit(130)
  })
}

const files = process.argv.slice(2)
const count = { passed: 0, failed: 0, skipped: 0 }
const waiting = [...files]
await Promise.all(
  Array.from({ length: JOBS }, async () => {
    for (let file = waiting.shift(); file; file = waiting.shift()) {
      const results = await runFile(file)
      report(results)
      count.passed += results.passed
      count.failed += results.failures.length
      count.skipped += results.skips.length
    }
  }),
)
if (count.passed + count.failed === 0) {
  count.failed++
  console.log('FAIL no test ran')
}
const summary = `${count.passed} passed, ${count.failed} failed${count.skipped > 0 ? `, ${count.skipped} skipped` : ''}`
writeFileSync('.tap/summary', `${summary}\n`)
console.log(`\n${summary}  (${seconds(Date.now() - begun)})`)
process.exitCode = count.failed > 0 ? 1 : 0
