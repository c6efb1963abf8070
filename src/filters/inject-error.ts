// The inject-error filter: fails chosen requests, so that tests can walk every error path of what is above.

import { z } from 'zod'
import { intersect, type Range } from '../base/ranges.ts'
import { systemFault } from '../base/system-fault.ts'
import type { BlockDriver, BlockIo, WriteFlags, ZeroFlags } from '../block/driver.ts'
import { oneFile, Passthrough } from './passthrough.ts'

const rule = z.strictObject({
  on: z.enum(['read', 'write', 'zero', 'discard', 'flush', 'extents']),
  errno: z.enum(['EPERM', 'EIO', 'ENOMEM', 'EINVAL', 'ENOSPC', 'ENOTSUP', 'ESHUTDOWN']).default('EIO'),
  skip: z.int().min(0).default(0).describe('How many such requests go well first'),
  times: z.int().min(1).optional().describe('How many then fail; by default all'),
  offset: z.int().min(0).default(0).describe('Only requests that touch the bytes from here on count'),
  length: z.int().min(1).optional().describe('and only so many bytes; by default to the end of the disk'),
})

const options = z.strictObject({ rules: z.array(rule) })

type Rule = z.infer<typeof rule>
export type InjectErrorOptions = z.infer<typeof options>

export const injectError: BlockDriver<InjectErrorOptions> = {
  name: 'inject-error',
  options,
  children: oneFile,
  open: async ({ rules }, { children, nodeName }) => new InjectError(children['file']!, rules, nodeName),
}

class InjectError extends Passthrough {
  readonly #rules: (Rule & { times: number; range: Range })[]

  constructor(
    below: BlockIo,
    rules: readonly Rule[],
    private readonly nodeName: string,
  ) {
    super(below)
    this.#rules = rules.map(({ times = Infinity, length = Infinity, ...rule }) => ({
      ...rule,
      times,
      range: { offset: rule.offset, length },
    }))
  }

  override async read(offset: number, into: Buffer) {
    this.#maybeFail('read', { offset, length: into.length })
    await super.read(offset, into)
  }

  override async write(offset: number, data: Buffer, flags?: WriteFlags) {
    this.#maybeFail('write', { offset, length: data.length })
    await super.write(offset, data, flags)
  }

  override async zero(range: Range, flags?: ZeroFlags) {
    this.#maybeFail('zero', range)
    await super.zero(range, flags)
  }

  override async discard(range: Range) {
    this.#maybeFail('discard', range)
    await super.discard(range)
  }

  override async flush() {
    this.#maybeFail('flush', { offset: 0, length: Infinity })
    await super.flush()
  }

  override async *extents(range: Range) {
    this.#maybeFail('extents', range)
    yield* super.extents(range)
  }

  #maybeFail(on: Rule['on'], range: Range) {
    const rule = this.#rules.find(rule => rule.on === on && rule.times > 0 && intersect(rule.range, range))
    if (!rule || rule.skip-- > 0) return
    rule.times--
    throw systemFault(`${this.nodeName} (inject-error)`, { code: rule.errno })
  }
}
