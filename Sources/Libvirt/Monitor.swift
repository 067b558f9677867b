import CLibvirt
import Foundation

/// A QMP command: encodes to its arguments.
public protocol MonitorCommand: Encodable {
    /// What QEMU returns.
    associatedtype Answer: Decodable
    /// QEMU's name for it, for example `query-status`.
    static var name: String { get }
}

/// For commands that answer `{}`; accepts anything.
public struct EmptyAnswer: Decodable, Sendable {
    public init() {}
    public init(from decoder: any Decoder) throws {}
}

/// QEMU refused a command (QMP `error` object).
public struct MonitorError: Error, CustomStringConvertible, Sendable, Hashable {
    /// `GenericError`, `CommandNotFound`, `DeviceNotFound`, ... (QEMU `qapi/error.json`).
    public let errorClass: String
    /// QEMU's words. For people: never branch on them.
    public let message: String
    public let command: String

    public init(errorClass: String, message: String, command: String) {
        (self.errorClass, self.message, self.command) = (errorClass, message, command)
    }

    /// This QEMU does not have the command.
    public var isCommandNotFound: Bool { errorClass == "CommandNotFound" }
    public var description: String { "QEMU refused \(command): \(message) (\(errorClass))" }
}

extension Domain {
    /// Sends a QMP command through libvirt and decodes its answer (`virDomainQemuMonitorCommand`). libvirt marks the domain as tainted
    /// (custom-monitor).
    ///
    /// - Throws: `LibvirtError` when it did not reach QEMU, `MonitorError` when QEMU refused it, `DecodingError` when the answer has
    ///   another shape than `Answer`.
    public func monitor<Command: MonitorCommand>(_ command: Command) throws -> Command.Answer {
        let reply = try monitorJSON(try MonitorWire.request(command))
        return try MonitorWire.answer(Command.Answer.self, from: reply, command: Command.name)
    }

    /// A command that has no type here.
    public func monitor(name: String, arguments: [String: JSONValue] = [:]) throws -> JSONValue {
        let request = try JSONCoding.encode(MonitorWire.Request(execute: name, arguments: arguments))
        return try MonitorWire.answer(JSONValue.self, from: try monitorJSON(request), command: name)
    }

    /// Sends QMP as it stands and returns QEMU's whole reply, `{"return": ...}` or `{"error": ...}` (`virDomainQemuMonitorCommand`).
    public func monitorJSON(_ json: String) throws(LibvirtError) -> String {
        try call("virDomainQemuMonitorCommand") { pointer in
            var result: UnsafeMutablePointer<CChar>?
            guard virDomainQemuMonitorCommand(pointer, json, &result, 0) == 0 else { return nil }
            return owned(result) ?? ""
        }
    }

    /// Sends QMP together with file descriptors, for example for `getfd` or `add-fd` (`virDomainQemuMonitorCommandWithFiles`). The caller
    /// keeps its descriptors; such as QEMU sends back are closed. Only over local connections.
    public func monitorJSON(_ json: String, files: [Int32]) throws(LibvirtError) -> String {
        try call("virDomainQemuMonitorCommandWithFiles") { pointer in
            var result: UnsafeMutablePointer<CChar>?
            var (files, received, count) = (files, UnsafeMutablePointer<Int32>?.none, UInt32(0))
            guard virDomainQemuMonitorCommandWithFiles(pointer, json, UInt32(files.count), &files, &count, &received, &result, 0) == 0 else {
                return nil
            }
            for index in 0..<Int(count) { received.map { _ = close($0[index]) } }
            free(received)
            return owned(result) ?? ""
        }
    }

    /// A command of the human monitor, and what it prints.
    public func monitorHuman(_ line: String) throws(LibvirtError) -> String {
        try call("virDomainQemuMonitorCommand") { pointer in
            var result: UnsafeMutablePointer<CChar>?
            guard virDomainQemuMonitorCommand(pointer, line, &result, VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP.rawValue) == 0 else { return nil }
            return owned(result) ?? ""
        }
    }
}

/// QMP's frame: `{"execute": NAME, "arguments": {...}}` and back `{"return": VALUE}` or `{"error": {"class": ..., "desc": ...}}`.
enum MonitorWire {
    struct Request<Arguments: Encodable>: Encodable {
        let execute: String
        let arguments: Arguments
    }

    private struct Success<Answer: Decodable>: Decodable {
        let `return`: Answer
    }

    private struct Failure: Decodable {
        struct Body: Decodable {
            let `class`: String?
            let desc: String?
        }
        let error: Body?
    }

    static func request<Command: MonitorCommand>(_ command: Command) throws -> String {
        try JSONCoding.encode(Request(execute: Command.name, arguments: command))
    }

    static func answer<Answer: Decodable>(_ type: Answer.Type, from reply: String, command: String) throws -> Answer {
        if let error = try JSONCoding.decode(Failure.self, from: reply).error {
            throw MonitorError(errorClass: error.class ?? "", message: error.desc ?? "", command: command)
        }
        return try JSONCoding.decode(Success<Answer>.self, from: reply).return
    }
}
