// QMP's authz-simple, authz-list and authz-listfile: who may come in of those who have proved who they are (nbd-server-start's tls-authz).
//
// An identity is the distinguished name of a client's certificate as QEMU has it: in the certificate's own order, "C=GB,O=Example,CN=backup".

import { readFile } from 'node:fs/promises'
import { z } from 'zod'
import { InvalidParameter, messageOf, strerror } from '../../base/errors.ts'
import { glob } from '../../base/glob.ts'
import type { Objects } from '../../block/objects.ts'
import { objectType } from './object-type.ts'

export interface Authz {
  /** @throws where its rules cannot be read: then nobody comes in */
  isAllowed(identity: string): Promise<boolean>
}

/** By the id of an object that may be gone by then: then nobody comes in. */
export const authzOf = (objects: Objects, id: string): Authz => ({
  async isAllowed(identity) {
    const found = objects.find(id)
    if (found instanceof Rules || found instanceof RulesFile) return found.isAllowed(identity)
    throw new InvalidParameter(`there is no authz object '${id}' any more; nobody is let in by it`)
  },
})

/** @throws InvalidParameter */
export function checkAuthz(objects: Objects, id: string) {
  const found = objects.find(id)
  if (found === undefined) throw new InvalidParameter(`No authz object with id '${id}'`)
  if (!(found instanceof Rules || found instanceof RulesFile))
    throw new InvalidParameter(`Object with id '${id}' is not an authz object`)
}

const policy = z.enum(['deny', 'allow'])

const list = {
  policy: policy.optional().describe('For whoever no rule matches; by default deny'),
  rules: z
    .array(
      z.strictObject({
        match: z.string(),
        policy,
        format: z.enum(['exact', 'glob']).optional().describe('glob: * stands for anything, ? for one character'),
      }),
    )
    .optional()
    .describe('The first that matches counts'),
}

type List = z.output<z.ZodObject<typeof list>>

class Rules implements Authz {
  constructor(private readonly list: List) {}

  async isAllowed(identity: string) {
    const { policy: otherwise = 'deny', rules = [] } = this.list
    const rule = rules.find(({ match, format = 'exact' }) =>
      format === 'exact' ? match === identity : glob(match).test(identity),
    )
    return (rule?.policy ?? otherwise) === 'allow'
  }
}

/** The same in a file, which is read anew for each client. */
class RulesFile implements Authz {
  constructor(private readonly filename: string) {}

  async isAllowed(identity: string) {
    return (await this.read()).isAllowed(identity)
  }

  async read(): Promise<Rules> {
    const { filename } = this
    let text: string
    try {
      text = await readFile(filename, 'utf8')
    } catch (error) {
      throw new InvalidParameter(`Unable to read '${filename}': ${strerror(error)}`, { cause: error })
    }
    try {
      return new Rules(z.strictObject(list).parse(JSON.parse(text)))
    } catch (error) {
      const what = error instanceof z.ZodError ? z.prettifyError(error) : messageOf(error)
      throw new InvalidParameter(`${filename} is no list of rules, as {"policy": "deny", "rules": [...]}: ${what}`, {
        cause: error,
      })
    }
  }
}

export const authzSimple = objectType({
  name: 'authz-simple',
  properties: { identity: z.string().describe('The only one that is let in') },
  create: ({ identity }) => new Rules({ rules: [{ match: identity, policy: 'allow' }] }),
})

export const authzList = objectType({
  name: 'authz-list',
  properties: list,
  propertyTypes: { policy: 'QAuthZListPolicy', rules: 'QAuthZListRule' },
  defaults: { policy: 'deny', rules: [] },
  create: properties => new Rules(properties),
})

export const authzListFile = objectType({
  name: 'authz-listfile',
  properties: {
    filename: z.string().describe('JSON, as the properties of an authz-list'),
    refresh: z.boolean().optional().describe('Read it again when it changes; true by default'),
  },
  defaults: { refresh: true },
  async create({ filename, refresh = true }) {
    const file = new RulesFile(filename)
    const rules = await file.read()
    return refresh ? file : rules
  },
})
