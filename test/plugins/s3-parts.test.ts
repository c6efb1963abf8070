// The parts of the S3 target that need no store: the signature against Amazon's own signer, what is read of XML, of profiles and of
// options, and who wrote an object.

import { createHash, createHmac } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { SignatureV4 } from '@smithy/signature-v4'
import fc from '../helpers/property.ts'
import t from 'tap'
import { readCredentials } from '../../plugins/s3/credentials.ts'
import { s3Options } from '../../plugins/s3/options.ts'
import { decodeRecord, encodeRecord, fateOf, newRecord, type PutRecord } from '../../plugins/s3/put-record.ts'
import { encodePath, encodeQuery, sign } from '../../plugins/s3/sign.ts'
import { escapeXml, parseXml, textOf } from '../../plugins/s3/xml.ts'
import { BadSettings, IoError } from '../../src/base/errors.ts'
import { readSecret } from '../../src/base/secret-reference.ts'
import { openTarget } from '../../src/push/target.ts'
import { silent } from '../helpers/s3.ts'

type Data = string | ArrayBuffer | ArrayBufferView

/** Amazon's signer wants a hash to be given. */
class Sha256 {
  readonly #hash: { update(data: Buffer): unknown; digest(): Buffer }
  constructor(key?: Data) {
    this.#hash = key === undefined ? createHash('sha256') : createHmac('sha256', bytesOf(key))
  }
  update(data: Data) {
    this.#hash.update(bytesOf(data))
  }
  async digest() {
    return new Uint8Array(this.#hash.digest())
  }
}

const bytesOf = (data: Data) =>
  typeof data === 'string'
    ? Buffer.from(data)
    : ArrayBuffer.isView(data)
      ? Buffer.from(data.buffer, data.byteOffset, data.byteLength)
      : Buffer.from(data)

const credentials = { accessKeyId: 'AKIDEXAMPLE', secretAccessKey: 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY' }

t.test('what we sign, Amazon’s own signer signs alike', async t => {
  const text = fc.string({ unit: 'grapheme', minLength: 1, maxLength: 20 }).filter(text => text.isWellFormed())
  const key = fc.array(text, { minLength: 1, maxLength: 4 }).map(parts => parts.join('/'))
  const header = fc
    .stringMatching(/^[a-z][a-z-]{1,15}$/)
    .filter(name => !['host', 'connection', 'expect', 'authorization', 'from', 'date'].includes(name))
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        method: fc.constantFrom('GET', 'PUT', 'POST', 'DELETE', 'HEAD'),
        key,
        query: fc.dictionary(
          fc.stringMatching(/^[a-zA-Z-]{1,12}$/),
          fc.string({ unit: 'grapheme', maxLength: 12 }).filter(text => text.isWellFormed()),
        ),
        headers: fc.dictionary(
          header.map(name => `x-amz-meta-${name}`),
          fc.stringMatching(/^[!-~]( {0,3}[!-~]){0,10}$/),
        ),
        body: fc.uint8Array({ maxLength: 100 }),
        token: fc.option(fc.stringMatching(/^[A-Za-z0-9+/=]{1,40}$/), { nil: undefined }),
        now: fc.date({ min: new Date('2000-01-01'), max: new Date('2099-12-31'), noInvalidDate: true }),
      }),
      async ({ method, key, query, headers, body, token, now }) => {
        const mine = { ...credentials, ...(token !== undefined && { sessionToken: token }) }
        const sha256 = createHash('sha256').update(body).digest('hex')
        const path = `/bucket/${encodePath(key)}`
        const ours = sign({ method, host: 'store.example:7480', path, query, headers, sha256 }, mine, 'eu-1', now)
        const signer = new SignatureV4({
          credentials: mine,
          region: 'eu-1',
          service: 's3',
          sha256: Sha256,
          uriEscapePath: false,
        })
        const theirs = await signer.sign(
          {
            method,
            protocol: 'http:',
            hostname: 'store.example',
            path,
            query,
            headers: { ...headers, host: 'store.example:7480', 'x-amz-content-sha256': sha256 },
            body,
          },
          { signingDate: now },
        )
        if (ours['authorization'] !== theirs.headers['authorization'])
          throw new Error(`${ours['authorization']}\n${theirs.headers['authorization']}`)
      },
    ),
    { numRuns: 500 },
  )
  t.pass('500 requests')
})

t.test('the example that Amazon publishes has the signature that Amazon publishes', async t => {
  // "GET Object", in "Signature Calculations for the Authorization Header".
  const signed = sign(
    {
      method: 'GET',
      host: 'examplebucket.s3.amazonaws.com',
      path: '/test.txt',
      query: {},
      headers: { range: 'bytes=0-9' },
      sha256: createHash('sha256').digest('hex'),
    },
    { accessKeyId: 'AKIAIOSFODNN7EXAMPLE', secretAccessKey: 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY' },
    'us-east-1',
    new Date('2013-05-24T00:00:00Z'),
  )
  t.match(signed['authorization'], /Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41$/)
  t.equal(encodeQuery({ prefix: 'a/ü b', 'list-type': '2', delete: '' }), 'delete=&list-type=2&prefix=a%2F%C3%BC%20b')
})

t.test('XML is read as it was written, and what is none is refused and never loops', async t => {
  const root = parseXml(
    '<?xml version="1.0"?>\n<s3:R xmlns="http://x/"><!-- c --><Key>a &amp; b &#60;&#x3e;&quot;</Key><Empty/><In><Key a="1">x</Key></In>\n</s3:R>\n',
  )
  t.equal(root.name, 'R')
  t.equal(textOf(root, 'Key'), 'a & b <>"')
  t.equal(textOf(root, 'Empty'), '')
  t.equal(textOf(root.children[2]!, 'Key'), 'x')
  const cdata = parseXml('<x:R xmlns:x="a>b" y=\'"/>\'><x:Key x:a=">"><![CDATA[a <&amp;]]]]>&gt;<![CDATA[]]></x:Key></x:R>')
  t.equal(textOf(cdata, 'Key'), 'a <&amp;]]>', 'as gateways write it anew')
  t.equal(textOf(parseXml('<a><b>&unknown; &#x110000;</b></a>'), 'b'), '&unknown; &#x110000;', 'what is no character stays')
  for (const bad of [
    '',
    'x',
    '<a>',
    '<a></b>',
    '<a/><b/>',
    '</a>',
    '<a/>x',
    '<a>'.repeat(100_000),
    '<'.repeat(100_000),
    '<a '.repeat(50_000),
    '<a "">'.repeat(50_000),
    `<a ${'"'.repeat(100_001)}`,
    '<![CDATA['.repeat(50_000),
  ])
    t.throws(() => parseXml(bad), IoError, bad.slice(0, 10))
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme' }), text => textOf(parseXml(`<a><b>${escapeXml(text)}</b></a>`), 'b') === text),
  )
})

const where = { endpoint: 'https://s3.example.net', bucket: 'bucket' }
const keys = { 'access-key': 'AK', 'secret-key': 'env:SECRET' }

t.test('options are checked with a sentence for each mistake, and no secret may stand among them', async t => {
  t.match(s3Options.parse({ ...where, ...keys, prefix: 'site-a', 'upload-limit': '10M', retry: '2m' }), {
    prefix: 'site-a/',
    'upload-limit': 10 * 2 ** 20,
    retry: 120_000,
    region: 'us-east-1',
  })
  for (const [options, sentence] of [
    [{ ...where }, /either access-key and secret-key, or profile/],
    [{ ...where, 'access-key': 'AK' }, /either access-key and secret-key, or profile/],
    [{ ...where, ...keys, profile: 'x' }, /either access-key and secret-key, or profile/],
    [{ ...where, ...keys, 'profile-file': 'x' }, /goes with profile/],
    [{ ...where, ...keys, 'secret-key': 'wJalrXUtnFEMI' }, /secret-key: must say where the secret is, and not what it is/],
    [{ ...where, ...keys, endpoint: 's3.example.net' }, /endpoint: must be an address such as/],
    [{ ...where, ...keys, endpoint: 'https://s3.example.net/bucket' }, /endpoint: must be an address such as/],
    [{ ...where, ...keys, bucket: 'a/b' }, /bucket: must be a bucket’s name/],
    [{ ...where, ...keys, prefix: '/x' }, /prefix: must be like/],
    [{ ...where, ...keys, prefix: 'a/../b' }, /prefix: must be like/],
    [{ ...where, ...keys, prefix: 'x'.repeat(300) }, /prefix: must be .*no more than 256 characters/],
    [{ ...where, ...keys, endpoint: 'http://10.0.0.7:7480', addressing: 'virtual' }, /addressing: must be "path" where/],
    [{ ...where, ...keys, 'upload-limit': 'fast' }, /bytes a second/],
    [{ ...where, ...keys, regoin: 'x' }, /regoin/],
  ] as const) {
    const failure = await openTarget({ plugin: 's3', ...options }, { log: silent }, 'repositories.x').then(
      () => t.fail('it was taken'),
      (error: unknown) => error as Error,
    )
    t.ok(failure instanceof BadSettings)
    t.match(String(failure), sentence)
    t.notMatch(String(failure), /wJalrXUtnFEMI/, 'and is not repeated')
  }
})

t.test('a secret comes from a file, the environment or systemd, and where there is none a sentence says so', async t => {
  const folder = t.testdir({ secret: 's3cr3t\n', empty: '\n', credentials: { name: 'from systemd' } })
  process.env['A_SECRET'] = 'from outside'
  delete process.env['CREDENTIALS_DIRECTORY']
  t.equal(await readSecret(`file:${folder}/secret`, 'key'), 's3cr3t')
  t.equal(await readSecret('env:A_SECRET', 'key'), 'from outside')
  await t.rejects(readSecret('credential:name', 'key'), { message: /^key: systemd gave no credentials; say LoadCredential=/ })
  process.env['CREDENTIALS_DIRECTORY'] = `${folder}/credentials`
  t.equal(await readSecret('credential:name', 'key'), 'from systemd')
  for (const [reference, sentence] of [
    [`file:${folder}/none`, /No such file or directory/],
    [`file:${folder}/empty`, /there is nothing in/],
    ['file:relative', /absolute/],
    ['env:NO_SUCH_VARIABLE', /the environment has no NO_SUCH_VARIABLE/],
    ['credential:none', /No such file/],
    ['credential:../secret', /needs a name/],
    ['credential:..', /needs a name/],
    ['plain', /where the secret is/],
  ] as const)
    await t.rejects(readSecret(reference, 'key'), { name: 'BadSettings', message: sentence }, reference)
})

t.test('a profile is read as AWS’s tools write it', async t => {
  const folder = t.testdir({
    credentials: [
      '# mine',
      '[default]',
      'aws_access_key_id = DEFAULT',
      'aws_secret_access_key=a/b+c=d',
      '',
      '[ backup ]',
      'aws_access_key_id=BACKUP',
      '  ; not this: aws_access_key_id = X',
      'aws_secret_access_key = secret # is part of it',
      'aws_session_token = token==',
      '[profile "with space"]',
      'aws_access_key_id = SPACE\r',
      'aws_secret_access_key = s\r',
      '[role]',
      'role_arn = x',
    ].join('\n'),
  })
  const read = (profile: string) => readCredentials({ profile, 'profile-file': `${folder}/credentials` })
  t.same(await read('default'), { accessKeyId: 'DEFAULT', secretAccessKey: 'a/b+c=d' })
  t.same(await read('backup'), { accessKeyId: 'BACKUP', secretAccessKey: 'secret # is part of it', sessionToken: 'token==' })
  t.same(await read('with space'), { accessKeyId: 'SPACE', secretAccessKey: 's' })
  await t.rejects(read('none'), { name: 'BadSettings', message: /has no profile 'none'/ })
  await t.rejects(read('role'), { name: 'BadSettings', message: /no aws_access_key_id/ })
  process.env['AWS_SHARED_CREDENTIALS_FILE'] = `${folder}/credentials`
  t.equal((await readCredentials({ profile: 'backup' })).accessKeyId, 'BACKUP')
  writeFileSync(`${folder}/key`, 'FROMFILE\n')
  process.env['SECRET'] = 's'
  t.same(await readCredentials({ ...keys, 'access-key': `file:${folder}/key`, 'session-token': 'env:SECRET' }), {
    accessKeyId: 'FROMFILE',
    secretAccessKey: 's',
    sessionToken: 's',
  })
})

t.test('an object tells whether a put was done, as long as it can, and never otherwise', async t => {
  // A store with one object; puts swap it, and some replies are lost.
  fc.assert(
    fc.property(fc.array(fc.nat(3), { minLength: 1, maxLength: 40 }), steps => {
      let there = { tag: 'tag0', record: newRecord() as PutRecord | undefined }
      const puts: { id: string; ifMatch: string; done: boolean }[] = []
      for (const [index, step] of steps.entries()) {
        const before = there
        const record = newRecord(before)
        // 0: done; 1: another was first; 2: somebody without records; 3: done, read back from what was sent.
        const done = step !== 1
        puts.push({ id: record.id, ifMatch: before.tag, done })
        const next = step === 1 ? newRecord(before) : record
        there = { tag: `tag${index + 1}`, record: step === 2 ? undefined : decodeRecord(encodeRecord(next)) }
        if (step === 2) puts.pop()
      }
      for (const { id, ifMatch, done } of puts) {
        const fate = fateOf({ id, ifMatch }, there)
        if (fate && fate.done !== done) return false
      }
      const last = puts.at(-1)
      return steps.at(-1) === 2 || fateOf(last!, there)?.done === last!.done
    }),
  )
  t.same(fateOf({ id: 'me', ifMatch: undefined }, { tag: 't', record: newRecord() }), { done: false })
  t.equal(fateOf({ id: 'me', ifMatch: undefined }, { tag: 't', record: undefined }), undefined)
  for (const odd of [undefined, '', ',', 'a b', 'x,y', 'x,=', ['x'], 'x'.repeat(10)]) t.doesNotThrow(() => decodeRecord(odd))
  t.ok(
    encodeRecord({
      id: 'x'.repeat(12),
      replaced: Array.from({ length: 15 }, () => ({ id: 'x'.repeat(12), tag: 'f'.repeat(36) })),
    }).length < 1500,
  )
})
