// What is known of an image beside its bytes, for query-named-block-nodes and people (QMP's ImageInfo).

export interface NodeInfo {
  /** Bytes that it takes up on its disk. */
  readonly allocated?: number | undefined
  /** Bytes; of formats that have clusters. */
  readonly clusterSize?: number | undefined
  /** It was not closed in an orderly way. Undefined where that cannot be known. */
  readonly dirty?: boolean | undefined
  readonly compressed?: boolean | undefined
  readonly encrypted?: boolean | undefined
  /** As the image names the one behind it. */
  readonly backing?: { readonly filename: string; readonly format?: string | undefined } | undefined
  /** In QMP's words, a list of SnapshotInfo. Undefined where there are none. */
  readonly snapshots?: readonly SnapshotInfo[] | undefined
  /** In QMP's words, ImageInfoSpecific: what only this format has. */
  readonly formatSpecific?: { readonly type: string; readonly data: Readonly<Record<string, unknown>> } | undefined
}

/** QMP's SnapshotInfo: an internal snapshot. */
export interface SnapshotInfo {
  readonly id: string
  readonly name: string
  readonly 'vm-state-size': number
  readonly 'date-sec': number
  readonly 'date-nsec': number
  readonly 'vm-clock-sec': number
  readonly 'vm-clock-nsec': number
  /** Instructions that the guest had executed. */
  readonly icount?: number
}
