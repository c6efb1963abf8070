// QMP's change-backing-file: the name by which an image knows the one behind it.

import { z } from 'zod'
import { InvalidParameter, messageOf } from '../../base/errors.ts'
import { checkRoot, withoutFilters } from '../../block/chain.ts'
import { reachable } from '../../block/drain.ts'
import { command } from '../command.ts'

export const changeBackingFile = command({
  name: 'change-backing-file',
  summary: 'Changes the name of the backing file that an image has in its header. What is behind it now stays there.',
  arguments: z.strictObject({
    device: z.string().describe('The node at the top of the chain'),
    'image-node-name': z.string(),
    'backing-file': z.string().describe('Not looked at'),
  }),
  async run({ device, 'image-node-name': name, 'backing-file': backingFile }, { graph }) {
    const top = graph.get(device)
    checkRoot(top)
    const image = graph.find(name)
    if (!image) throw new InvalidParameter(`Cannot find device='' nor node-name='${name}'`)
    const behind = image.children.get('backing')?.node
    if (!behind) throw new InvalidParameter('not allowing backing file change on an image without a backing file')
    if (!reachable(top).has(image)) throw new InvalidParameter(`'${device}' and image file are not in the same chain`)
    const wasReadOnly = image.readOnly
    if (wasReadOnly) await graph.setReadOnly(image, false)
    try {
      await image.changeBackingFile(backingFile === '' ? undefined : backingFile, withoutFilters(behind).driver.name)
    } catch (error) {
      throw new InvalidParameter(`Could not change backing file to '${backingFile}': ${messageOf(error)}`, { cause: error })
    } finally {
      if (wasReadOnly) await graph.setReadOnly(image, true)
    }
  },
})
