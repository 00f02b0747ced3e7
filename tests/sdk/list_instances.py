"""Lists every instance with the vendor's own SDK, as an independent client of the simulator.

Usage: list_instances.py ENDPOINT SERVICE API-VERSION PAGE-SIZE ACTION

The credentials come from ZENLAYER_TOKEN, or else ZENLAYER_ACCESS_KEY_ID and ZENLAYER_ACCESS_KEY_SECRET.
Each line of the output is JSON, in the API's order: {"id", "status"} of one instance for DescribeInstancesStatus, and what
else the SDK has of it for DescribeInstances; or, with exit code 1, {"code", "message", "requestId"} of the SDK's exception.
"""

import importlib
import json
import os
import sys
from urllib.parse import urlsplit

from zenlayercloud.common.config import Config
from zenlayercloud.common.credential import Credential, TokenCredential
from zenlayercloud.common.excpetion.zenlayer_cloud_sdk_exception import ZenlayerCloudSdkException


def credential():
    token = os.environ.get("ZENLAYER_TOKEN")
    if token:
        return TokenCredential(token)
    return Credential(os.environ["ZENLAYER_ACCESS_KEY_ID"], os.environ["ZENLAYER_ACCESS_KEY_SECRET"])


def connect(endpoint, service, version):
    package = f"zenlayercloud.{service}.v{version.replace('-', '')}"
    models = importlib.import_module(f"{package}.models")
    client_class = getattr(importlib.import_module(f"{package}.{service}_client"), f"{service.capitalize()}Client")
    url = urlsplit(endpoint)
    return client_class(credential(), Config(scheme=url.scheme, domain=url.netloc)), models


def instances(client, models, page_size, action):
    request = getattr(models, f"{action}Request")()
    request.pageSize = page_size
    request.pageNum = 1
    while True:
        page = getattr(client, action)(request)
        yield from page.dataSet or []
        if request.pageNum * page_size >= page.totalCount:
            return
        request.pageNum += 1


def told(instance):
    """What a person would look for; a service or version without a field has none of it."""
    fields = ["instanceName", "zoneId", "instanceType", "imageName", "instanceChargeType", "expiredTime", "resourceGroupName"]
    tags = getattr(instance, "tags", None)
    pairs = {tag.key: tag.value for tag in tags.tags} if tags else None
    return {field: getattr(instance, field, None) for field in fields} | {"tags": pairs}


def main(endpoint, service, version, page_size, action):
    client, models = connect(endpoint, service, version)
    try:
        for instance in instances(client, models, int(page_size), action):
            if action == "DescribeInstancesStatus":
                print(json.dumps({"id": instance.instanceId, "status": instance.instanceStatus}))
            else:
                print(json.dumps({"id": instance.instanceId} | told(instance)))
    except ZenlayerCloudSdkException as error:
        print(json.dumps({"code": error.code, "message": error.message, "requestId": error.request_id}))
        sys.exit(1)


main(*sys.argv[1:])
