{{- define "rowmill.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Names are cut to 40 characters, so that each suffix still leaves a legal one. */}}
{{- define "rowmill.fullname" -}}
{{- $name := include "rowmill.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What a ClusterRole and its like are called: two releases of one name may live in two namespaces. */}}
{{- define "rowmill.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "rowmill.fullname" .) | trunc 200 -}}
{{- end -}}

{{- define "rowmill.selector" -}}
app.kubernetes.io/name: {{ include "rowmill.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "rowmill.labels" -}}
{{ include "rowmill.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: rowmill
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* An image by its digest, else by its tag, else by the chart's version. */}}
{{- define "rowmill.image" -}}
{{- $repository := .image.repository -}}
{{- with .root.Values.imageRegistry -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) $repository -}}
{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "rowmill.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "rowmill.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "rowmill.leaseName" -}}
{{- default (include "rowmill.fullname" .) .Values.operator.leaseName -}}
{{- end -}}

{{- define "rowmill.storesSecret" -}}
{{- printf "%s-stores" (include "rowmill.fullname" .) -}}
{{- end -}}

{{/* Where a store is: a Secret that exists, an address in the values, or the demo's own. Fails when it is nowhere. */}}
{{- define "rowmill.storeRef" -}}
{{- $store := index .root.Values .store -}}
{{- if $store.existingSecret.name -}}
{{- if $store.url -}}
{{- fail (printf "rowmill: %s.url and %s.existingSecret.name are both set: set one" .store .store) -}}
{{- end -}}
name: {{ $store.existingSecret.name }}
key: {{ $store.existingSecret.key }}
{{- else if or $store.url .root.Values.demo.enabled -}}
name: {{ include "rowmill.storesSecret" .root }}
key: {{ .store }}
{{- else -}}
{{- fail (printf "rowmill: where is %s? Set %s.existingSecret.name to a Secret in the namespace %s whose key %q holds its address, or, for a trial only, demo.enabled=true" (title .store) .store .root.Release.Namespace $store.existingSecret.key) -}}
{{- end -}}
{{- end -}}

{{/* Whether the demo's own server of this kind is used. */}}
{{- define "rowmill.demoStore" -}}
{{- $store := index .root.Values .store -}}
{{- if and .root.Values.demo.enabled (not $store.existingSecret.name) (not $store.url) -}}yes{{- end -}}
{{- end -}}

{{/* The host of a Service of the chart: its fixed address where the cluster has no DNS, else its name. */}}
{{- define "rowmill.host" -}}
{{- default (printf "%s.%s.svc" .name .root.Release.Namespace) .clusterIP -}}
{{- end -}}

{{/* Pod Security "restricted" for the pods besides the operator; their user differs. */}}
{{- define "rowmill.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "rowmill.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
