/// The numbers of the protocol, by the names of its specification (doc/proto.md of the NBD project). All are big-endian.
enum Wire {
    static let greeting: UInt64 = 0x4e42_444d_4147_4943          // "NBDMAGIC"
    static let option: UInt64 = 0x4948_4156_454f_5054            // "IHAVEOPT"
    static let optionReply: UInt64 = 0x0003_e889_0455_65a9
    static let request: UInt32 = 0x2560_9513
    static let simpleReply: UInt32 = 0x6744_6698
    static let structuredReply: UInt32 = 0x668e_33ef

    static let fixedNewstyle: UInt16 = 1
    static let noZeroes: UInt16 = 2

    static let optionHeaderBytes = 16
    static let requestBytes = 28
    static let simpleReplyBytes = 16
    static let chunkHeaderBytes = 20

    /// The specification's limit for every string.
    static let mostNameBytes = 4096
    static let allocationContext = "base:allocation"
    /// Our number for it, for the client to recognise.
    static let allocationContextID: UInt32 = 1
}

enum Option: UInt32 {
    case exportName = 1, abort, list, peekExport, startTLS, info, go, structuredReply, listMetaContext, setMetaContext, extendedHeaders

    static func name(_ number: UInt32) -> String {
        guard let option = Option(rawValue: number) else { return "Option \(number)" }
        switch option {
        case .exportName: return "EXPORT_NAME"
        case .abort: return "ABORT"
        case .list: return "LIST"
        case .peekExport: return "PEEK_EXPORT"
        case .startTLS: return "STARTTLS"
        case .info: return "INFO"
        case .go: return "GO"
        case .structuredReply: return "STRUCTURED_REPLY"
        case .listMetaContext: return "LIST_META_CONTEXT"
        case .setMetaContext: return "SET_META_CONTEXT"
        case .extendedHeaders: return "EXTENDED_HEADERS"
        }
    }
}

enum OptionReply: UInt32 {
    case acknowledge = 1, server, info, metaContext
    case unsupported = 0x8000_0001, policy, invalid, platform, tlsRequired, unknown, shutdown, blockSizeRequired, tooBig
}

/// What INFO and GO can tell about an export.
enum Information: UInt16 {
    case export = 0, name, description, blockSize
}

struct TransmissionFlags: OptionSet {
    let rawValue: UInt16
    static let hasFlags = TransmissionFlags(rawValue: 1 << 0)
    static let readOnly = TransmissionFlags(rawValue: 1 << 1)
    static let sendFlush = TransmissionFlags(rawValue: 1 << 2)
    static let sendFUA = TransmissionFlags(rawValue: 1 << 3)
    static let sendTrim = TransmissionFlags(rawValue: 1 << 5)
    static let sendWriteZeroes = TransmissionFlags(rawValue: 1 << 6)
    static let sendDF = TransmissionFlags(rawValue: 1 << 7)
    static let canMultiConn = TransmissionFlags(rawValue: 1 << 8)
    static let sendFastZero = TransmissionFlags(rawValue: 1 << 11)
}

enum Command: UInt16 {
    case read = 0, write, disconnect, flush, trim, cache, writeZeroes, blockStatus
}

struct CommandFlags: OptionSet {
    let rawValue: UInt16
    static let forceUnitAccess = CommandFlags(rawValue: 1 << 0)
    static let noHole = CommandFlags(rawValue: 1 << 1)
    static let doNotFragment = CommandFlags(rawValue: 1 << 2)
    static let requestOne = CommandFlags(rawValue: 1 << 3)
    static let fastZero = CommandFlags(rawValue: 1 << 4)
}

enum ChunkType: UInt16 {
    case none = 0, offsetData = 1, offsetHole = 2, blockStatus = 5, error = 0x8001
    /// In the flags beside the type: no chunk of this reply follows.
    static let done: UInt16 = 1
}

extension UnsafeRawPointer {
    @inline(__always)
    func big<T: FixedWidthInteger>(_ offset: Int, as type: T.Type) -> T { T(bigEndian: loadUnaligned(fromByteOffset: offset, as: T.self)) }
}

extension UnsafeMutableRawPointer {
    @inline(__always)
    func storeBig<T: FixedWidthInteger>(_ value: T, _ offset: Int) { storeBytes(of: value.bigEndian, toByteOffset: offset, as: T.self) }
}
