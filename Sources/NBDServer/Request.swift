import Glibc

/// A request, big-endian; a WRITE's payload follows.
///
///      0  u32 0x25609513
///      4  u16 flags      0 FUA, 1 no hole, 2 do not fragment, 3 one extent, 4 fast zero
///      6  u16 command    0 READ, 1 WRITE, 2 DISC, 3 FLUSH, 4 TRIM, 6 WRITE_ZEROES, 7 BLOCK_STATUS
///      8  u64 cookie     returned with the reply
///     16  u64 offset
///     24  u32 length
struct Request {
    var flags: CommandFlags
    var number: UInt16
    var cookie: UInt64
    var offset: UInt64
    var length: UInt32

    /// Reads all but the magic, which the caller has checked.
    init(_ base: UnsafeRawPointer) {
        flags = CommandFlags(rawValue: base.big(4, as: UInt16.self))
        number = base.big(6, as: UInt16.self)
        cookie = base.big(8, as: UInt64.self)
        offset = base.big(16, as: UInt64.self)
        length = base.big(24, as: UInt32.self)
    }

    var command: Command? { Command(rawValue: number) }
    var forceUnitAccess: Bool { flags.contains(.forceUnitAccess) }

    /// What the protocol itself has against it, before the export is asked.
    func refusal(_ rules: RequestRules) -> NBDError? {
        guard let command, command != .cache else { return NBDError(EINVAL, "Command \(number) is not supported") }
        guard flags.subtracting(rules.flags(command)).isEmpty else {
            return NBDError(EINVAL, "\(name) does not know flags 0x\(String(flags.rawValue, radix: 16))")
        }
        switch command {
        case .flush, .disconnect, .cache: return nil
        case .write, .trim, .writeZeroes:
            if rules.readOnly { return NBDError(EPERM, "\(name) on a read-only export") }
        case .read, .blockStatus:
            if !rules.canRead { return NBDError(ENOTSUP, "\(name) on an export that takes writes only") }
        }
        return rangeRefusal(command, rules)
    }

    private func rangeRefusal(_ command: Command, _ rules: RequestRules) -> NBDError? {
        if length == 0 { return NBDError(EINVAL, "\(name) of no bytes at \(offset)") }
        if offset > rules.byteCount || UInt64(length) > rules.byteCount - offset {
            let code = command == .write || command == .writeZeroes ? ENOSPC : EINVAL
            return NBDError(code, "\(name) of \(length) bytes at \(offset) reaches beyond the end at \(rules.byteCount)")
        }
        if (offset | UInt64(length)) & (rules.minimumBlock - 1) != 0 {
            return NBDError(EINVAL, "\(name) of \(length) bytes at \(offset) is no multiple of \(rules.minimumBlock)")
        }
        if command == .read || command == .write, length > rules.maximumPayload {
            return NBDError(EINVAL, "\(name) of \(length) bytes at \(offset) is longer than \(rules.maximumPayload)")
        }
        if command == .blockStatus, !rules.allocation {
            return NBDError(EINVAL, "\(name) without a choice of \(Wire.allocationContext)")
        }
        return nil
    }

    private var name: String {
        switch command {
        case .read: "READ"
        case .write: "WRITE"
        case .trim: "TRIM"
        case .writeZeroes: "WRITE_ZEROES"
        case .blockStatus: "BLOCK_STATUS"
        case .flush: "FLUSH"
        case .disconnect: "DISC"
        default: "Command \(number)"
        }
    }
}

/// What requests are checked against, asked of the export once.
struct RequestRules {
    var byteCount: UInt64
    var readOnly: Bool
    var canRead: Bool
    var zeroesFast: Bool
    var structuredReplies: Bool
    var allocation: Bool
    var minimumBlock: UInt64
    var maximumPayload: UInt32

    init(_ export: any NBDExport, _ agreement: Agreement, _ settings: Settings) {
        byteCount = export.byteCount
        readOnly = export.isReadOnly
        canRead = export.canRead
        zeroesFast = export.zeroesFast
        structuredReplies = agreement.structuredReplies
        allocation = agreement.allocation
        minimumBlock = UInt64(settings.minimumBlock)
        maximumPayload = UInt32(settings.maximumPayload)
    }

    /// FUA may come with every command; those that write nothing ignore it.
    func flags(_ command: Command) -> CommandFlags {
        let always: CommandFlags = readOnly ? [] : .forceUnitAccess
        switch command {
        case .read: return structuredReplies ? always.union(.doNotFragment) : always
        case .writeZeroes: return always.union([.noHole, .fastZero])
        case .blockStatus: return always.union(.requestOne)
        default: return always
        }
    }
}
