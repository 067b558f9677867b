import Glibc

/// What is wrong with a migration stream, where in it, and what was being read.
public struct StreamError: Error, CustomStringConvertible, Sendable, Equatable {
    public enum Kind: Sendable, Equatable {
        /// The stream does not start with `QEVM`.
        case badMagic(UInt32)
        /// A stream version other than 3.
        case unsupportedVersion(UInt32)
        /// A section type byte that has no place here.
        case unknownSection(UInt8)
        /// A section of a device that sends live state of its own (only `ram` is understood).
        case unsupportedSection(name: String)
        /// A part or end of a section that was never started.
        case unknownSectionID(UInt32)
        /// A command that changes what follows (postcopy, packaged).
        case unsupportedCommand(UInt16)
        /// A capability in the configuration section that changes the format (`x-ignore-shared`, `mapped-ram`).
        case unsupportedCapability(name: String)
        /// A subsection of the configuration section whose length nobody knows.
        case unknownConfiguration(name: String)
        /// A RAM word whose flags mean nothing, or nothing that COLO can use.
        case unknownRAMFlags(UInt64)
        case unknownBlock(name: String)
        /// A page "of the same block as before" when there is none before.
        case noBlock
        case pageOutOfBlock(name: String, offset: UInt64)
        /// The block list: a length that is no multiple of 4096, a name twice, or a sum that is not the announced total.
        case badBlockList(reason: String)
        /// A block list outside `ram` start, or `ram` start without one, or twice.
        case misplacedBlockList
        /// The section did not end with 0x7e and its id.
        case badFooter
        case tooLong(what: String, length: UInt64, limit: UInt64)
        case unexpectedMessage(got: UInt32, expected: COLOMessage)
        case endOfStream
        /// `read`, `poll`, or `send` failed with this errno.
        case system(call: String, code: Int32)
        /// The chunk pool has no memory left below its limit.
        case ceiling(limitBytes: Int)
        /// The wake-up descriptor became readable.
        case interrupted
        /// The deadline passed.
        case timedOut
        /// A call that this state of the dialogue does not allow.
        case outOfOrder(call: String, state: String)
    }

    public let kind: Kind
    /// What was being read: `header`, `ram end`, `device state`.
    public let section: String
    /// Bytes of the stream before the item at fault.
    public let offset: UInt64

    public init(_ kind: Kind, section: String, offset: UInt64) {
        self.kind = kind
        self.section = section
        self.offset = offset
    }

    public var description: String { "\(kind.text) (QEMU stream, \(section), offset \(offset))" }
}

extension StreamError.Kind {
    var text: String {
        switch self {
        case .badMagic(let got): "Not a QEMU migration stream: it starts with \(hex(got))"
        case .unsupportedVersion(let got): "Migration stream version \(got) is not supported, only 3 is"
        case .unknownSection(let type): "Unknown section type \(hex(type))"
        case .unsupportedSection(let name): "Device \"\(name)\" sends live state, which cannot be replicated; detach it"
        case .unknownSectionID(let id): "Section \(id) goes on without having been started"
        case .unsupportedCommand(let command): "Migration command \(command) is not supported; turn postcopy off"
        case .unsupportedCapability(let name): "Migration capability \(name) is not supported; turn it off"
        case .unknownConfiguration(let name): "Unknown part of the configuration section: \"\(name)\""
        case .unknownRAMFlags(let flags): "RAM record with flags \(hex(flags))\(RAMFlags.explain(flags)) is not supported"
        case .unknownBlock(let name): "Page of RAM block \"\(name)\", which the stream did not announce"
        case .noBlock: "Page without a RAM block"
        case .pageOutOfBlock(let name, let offset): "Page at \(hex(offset)) lies outside RAM block \"\(name)\""
        case .badBlockList(let reason): "Bad RAM block list: \(reason)"
        case .misplacedBlockList: "The RAM block list must stand once, in the start section"
        case .badFooter: "Section without its closing mark"
        case .tooLong(let what, let length, let limit): "\(what) of \(length) is over the limit of \(limit)"
        case .unexpectedMessage(let got, let expected):
            "COLO message \(COLOMessage(rawValue: got)?.name ?? String(got)) where \(expected.name) was expected"
        case .endOfStream: "The stream ended early"
        case .system(let call, let code): "\(call): \(String(cString: strerror(code)))"
        case .ceiling(let limit): "Receive buffers are at their limit of \(limit >> 20) MiB"
        case .interrupted: "Reading was interrupted"
        case .timedOut: "Nothing came before the deadline"
        case .outOfOrder(let call, let state): "\(call) is not possible in state \(state)"
        }
    }
}

private func hex(_ value: some BinaryInteger) -> String { "0x" + String(value, radix: 16) }
