import Foundation
import Glibc
import Platform

/// Times that both ends of the control socket keep to.
public enum ControlTiming {
    /// While a request is worked on, the service sends at least one progress line in this time.
    public static let progressEveryMs = 5000.0
    /// A client that hears nothing for this long gives up; the work itself goes on.
    public static let silenceLimitMs = 30000.0
}

/// Why the service gave no answer. What it answered, even a refusal, is no error of this type.
public enum ControlClientError: Error, Sendable, Equatable, CustomStringConvertible {
    case notRunning(path: String)
    /// `group` may use the socket besides root; nil: nobody.
    case permissionDenied(path: String, group: String?)
    /// Nothing came for this many milliseconds.
    case silent(path: String, milliseconds: Double)
    /// The connection ended before the answer did.
    case closed(path: String)
    /// What came is no answer of this protocol.
    case badAnswer(path: String, detail: String)
    case system(path: String, SystemError)

    public var description: String {
        switch self {
        case .notRunning(let path):
            "Cannot reach the service at \(path): is it running? Start it with `systemctl start shadow-virt`"
        case .permissionDenied(let path, let group?):
            "Permission denied at \(path): run as root or as a member of the group '\(group)'"
        case .permissionDenied(let path, nil):
            "Permission denied at \(path): run as root, or set control_socket_group in the configuration"
        case .silent(let path, let milliseconds):
            "The service at \(path) has said nothing for \(Int(clamping: Int64(milliseconds / 1000))) s: it hangs or is overloaded; see `journalctl -u shadow-virt`"
        case .closed(let path):
            "The service at \(path) went away before it answered: see `journalctl -u shadow-virt`, then ask again"
        case .badAnswer(let path, let detail):
            "The service at \(path) gave an answer that this version does not understand (\(detail)): are CLI and service of the same version?"
        case .system(let path, let error):
            "Cannot talk to the service at \(path): \(error)"
        }
    }
}

/// Asks the local service over its control socket: one connection a request, one JSON object a line.
///
///     client:  request LF
///     service: { progress LF } answer LF
///
/// The service finishes what it began when the client goes away. A live migration can be ended: the client sends a second request, `cancel`,
/// on the same connection, and still gets one answer, which tells how it ended.
public struct ControlClient: Sendable {
    public let path: String
    /// Named in the error when the socket does not tell whose it is.
    public let group: String?
    public let silenceLimitMs: Double
    public let ceiling: Int

    public init(path: String, group: String? = nil, silenceLimitMs: Double = ControlTiming.silenceLimitMs,
                ceiling: Int = LineChannel.defaultCeiling) {
        self.path = path
        self.group = group
        self.silenceLimitMs = silenceLimitMs
        self.ceiling = ceiling
    }

    /// Sends `request` and waits for its answer; `progress` is called for every progress line before that. `cancel`: once that becomes readable,
    /// the service is told to end what it does.
    public func exchange(_ request: ControlRequest, cancel: WakeUp? = nil, progress: (ControlResponse.Progress) -> Void = { _ in })
        throws(ControlClientError) -> ControlResponse {
        let channel = try begin(request)
        var cancel = cancel
        while true {
            guard let response = try nextResponse(channel, wake: cancel?.raw ?? -1) else {
                cancel = nil
                do {
                    try channel.writeLine(try ControlCodec.encode(ControlRequest(.cancel, domain: request.domain)), deadline: .now.adding(milliseconds: silenceLimitMs))
                } catch LineChannel.Failure.closed {
                    // It was over already: its answer is in the socket.
                } catch {
                    throw explained(error)
                }
                continue
            }
            guard let step = response.progress else { return response }
            progress(step)
        }
    }

    /// Connects and sends the request.
    func begin(_ request: ControlRequest) throws(ControlClientError) -> LineChannel {
        let channel = LineChannel(try connect(), ceiling: ceiling)
        do {
            try channel.writeLine(try ControlCodec.encode(request), deadline: .now.adding(milliseconds: silenceLimitMs))
        } catch LineChannel.Failure.closed {
            // A service that turns the request down before reading it has left its reason in the socket.
        } catch {
            throw explained(error)
        }
        return channel
    }

    /// Nil when `wake` became readable.
    func nextResponse(_ channel: LineChannel, wake: Int32) throws(ControlClientError) -> ControlResponse? {
        let response: ControlResponse
        do {
            guard let line = try channel.readLine(deadline: .now.adding(milliseconds: silenceLimitMs), wake: wake) else {
                throw ControlClientError.closed(path: path)
            }
            response = try ControlCodec.decode(ControlResponse.self, from: line)
        } catch LineChannel.Failure.interrupted {
            return nil
        } catch {
            throw explained(error)
        }
        guard response.isAnswer || response.progress != nil else {
            throw .badAnswer(path: path, detail: "an object without any known key")
        }
        return response
    }

    private func connect() throws(ControlClientError) -> Descriptor {
        do throws(SystemError) {
            return try ControlSocket.connect(path: path, deadline: .now.adding(milliseconds: min(silenceLimitMs, 5000)))
        } catch {
            switch error.code {
            case ENOENT, ECONNREFUSED, ENOTDIR: throw .notRunning(path: path)
            case EACCES, EPERM: throw .permissionDenied(path: path, group: groupOfSocket())
            case ETIMEDOUT: throw .silent(path: path, milliseconds: min(silenceLimitMs, 5000))
            default: throw .system(path: path, error)
            }
        }
    }

    /// The socket's own group, when it can be seen and is not root's.
    private func groupOfSocket() -> String? {
        var status = stat()
        guard stat(path, &status) == 0, status.st_mode & 0o020 != 0 else { return group }
        guard status.st_gid != 0 else { return nil }
        return getgrgid(status.st_gid).map { String(cString: $0.pointee.gr_name) } ?? String(status.st_gid)
    }

    private func explained(_ error: any Error) -> ControlClientError {
        switch error {
        case let error as ControlClientError: error
        case LineChannel.Failure.timedOut: .silent(path: path, milliseconds: silenceLimitMs)
        case LineChannel.Failure.closed, LineChannel.Failure.cutOff: .closed(path: path)
        case LineChannel.Failure.system(let error): .system(path: path, error)
        case let failure as LineChannel.Failure: .badAnswer(path: path, detail: "\(failure)")
        default: .badAnswer(path: path, detail: "no JSON object of this protocol")
        }
    }
}

extension ControlResponse {
    /// True when one of the answers' keys is there.
    var isAnswer: Bool {
        failure != nil || status != nil || handover != nil || doctor != nil || migration != nil || forecast != nil || done != nil || events != nil
            || kpi != nil || drift != nil || hosts != nil || health != nil || inside != nil || bundles != nil || policy != nil || placement != nil || drain != nil
    }
}
